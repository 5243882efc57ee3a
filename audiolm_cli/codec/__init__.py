"""Audio <-> codes: `soundstream` is the codec, `autoencoders` its two kinds of encoder and decoder."""
