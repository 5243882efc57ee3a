"""From arguments to exit code: `cli` defines the commands, `arguments` their shared options; `planning` decides and
names the outputs, `places` checks what may be written; `batch` makes one batch, `runner` runs the batches here,
`cluster` on Ray.
"""
