"""`audiolm serve`: a loaded model behind HTTP, for this machine or, with a token, for others."""
