"""A bundle adapted to somebody's own recordings: what `audiolm train` does."""
