"""Measures of sound and tokens, for evaluation."""
