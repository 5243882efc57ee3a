"""Measures of audio and tokens, for evaluation."""
