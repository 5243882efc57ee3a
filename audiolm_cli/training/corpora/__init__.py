"""What is learned from: recordings (`data`, `hearing`), `synthetic` speech, a `piano` from MIDI; and `tokenize`."""
