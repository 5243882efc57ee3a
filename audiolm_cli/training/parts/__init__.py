"""Programs that each train a part of a bundle, and `assemble`, which makes the bundle of them."""
