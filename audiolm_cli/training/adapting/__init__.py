"""`audiolm train`: adapts a bundle to a user's own recordings."""
