"""Sound as files and as samples: `files` reads and writes, `ffmpeg` and `headers` help it with formats, `inputs` opens
what a user names; `mel` is what the tokenizer hears, `postfilter` what outputs pass through.
"""
