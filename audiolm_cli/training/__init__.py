"""Everything that makes weights; inference never imports it."""
