"""Tokens in, more tokens out; independent of audio and files.

`stages` feeds each of the three stages, `engine` decodes, `sampling` samples from logits; `transformer`, `frames` and
`parallel` are the models, `tokens` their sequences, `likelihood` their scores of given tokens.
"""
