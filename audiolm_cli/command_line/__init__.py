"""From arguments to exit code: `cli` has the commands, `arguments` the options that they share; `planning` says which
outputs are made and names them, `places` what may be written; `batch` makes one batch, `runner` runs batch after batch
here, `cluster` on Ray.
"""
