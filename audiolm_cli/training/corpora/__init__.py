"""Training data: recordings (`data`) and how they are changed (`augmentation`), `synthetic` speech, `piano` music that
`piano_synth` plays from MIDI; `tokenize` turns all of it into tokens."""
