"""Tokens in, more tokens out; nothing here knows of audio or files.

`stages` says what each of the three stages feeds its model; `engine` decodes, `sampling` draws; `transformer`, `frames`
and `parallel` are the kinds of models, `tokens` their layouts, `likelihood` how likely they find tokens.
"""
