"""From arguments to exit code: `cli` has the commands, `options` what can be asked for, `command` what commands share;
`planning` names all outputs, `jobs` runs a list of jobs here and `cluster` on Ray, `tasks` does one of each command.
"""
