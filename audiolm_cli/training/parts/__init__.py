"""Programs that train a part of a bundle each, and `assemble`, which makes a bundle of them."""
