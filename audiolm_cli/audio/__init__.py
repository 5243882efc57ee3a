"""Audio files and signal processing: `files` reads and writes (`ffmpeg`, `headers` and `encoding` help with formats),
`inputs` opens a user's files; `mel` is the tokenizer's front end, `postfilter` processes outputs.
"""
