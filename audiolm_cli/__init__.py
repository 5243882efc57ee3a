"""AudioLM on the command line: continues audio."""

__version__ = "0.1.0"
