"""Everything that makes weights; inference never imports it."""

RATE = 16000  # Hz, of all that is trained on, and that judges hear
