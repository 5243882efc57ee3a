"""Training data: recordings (`data`) and their `augmentation`, `synthetic` speech, `piano` music rendered from MIDI by
`piano_synth`; `tokenize` turns all of it into tokens."""
