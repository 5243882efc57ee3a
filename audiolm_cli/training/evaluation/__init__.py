"""`evaluate` prints the quality figures; the other files make one table or curve each."""
