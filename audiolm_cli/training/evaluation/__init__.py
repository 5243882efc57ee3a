"""`evaluate` prints the figures on quality; the other files make one table or curve each."""
