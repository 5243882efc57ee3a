"""Training and evaluation of bundles; inference never imports it."""

RATE = 16000  # Hz, of all training and evaluation audio
