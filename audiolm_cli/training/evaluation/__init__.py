"""`evaluate` prints the quality figures; each other file computes one table or curve."""
