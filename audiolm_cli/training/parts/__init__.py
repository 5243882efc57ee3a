"""Programs that each train one part of a bundle, and `assemble`, which puts the parts together."""
