"""Checkpoints that others published, as the files that they are: what is known of one before any of it is loaded.

Needs no torch. Nothing in a file is trusted: what does not fit is a ModelError of one line.
"""
