"""Public checkpoints as files: what can be known of one before loading any of it.

Needs no torch. No file is trusted: any mismatch is a ModelError of one line.
"""
