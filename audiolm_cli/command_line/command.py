"""What the commands share: from parsed options to jobs, outputs and the exit code."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from audiolm_cli.command_line import options
from audiolm_cli.console import Console
from audiolm_cli.errors import UsageError, display

if TYPE_CHECKING:
    from audiolm_cli.command_line.jobs import Job

RAY_ADDRESS = re.compile(r"auto|local|ray://\S+|[\w.-]+:\d{1,5}")


class RayCommand(TyperCommand):
    """A command whose option --ray may stand without a value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        if "--ray" in args[:end]:
            place = args.index("--ray")
            address = [a for a in args[place + 1 : end][:1] if RAY_ADDRESS.fullmatch(a)]
            args = [*args[:place], f"--ray={''.join(address)}", *args[place + 1 + len(address) :]]
        return super().parse_args(ctx, args)


def console_of(ctx: typer.Context) -> Console:
    """The console, told what the command's options say."""
    console: Console = ctx.obj
    for flag in ("quiet", "json", "debug"):
        setattr(console, flag, ctx.params.get(flag, False))
    if not console.debug:
        warnings.simplefilter("ignore")
    return console


class Command:
    """From parsed options to the exit code, the same for all commands that make outputs. Options go by their names, in
    `ctx.params`: a command's signature says which of them it has."""

    def __init__(self, ctx: typer.Context, suffixes: tuple[str, ...]):
        self.console, self.suffixes, self.params = console_of(ctx), suffixes, ctx.params
        check_device(self.params["device"])
        if self.params["ray"] and not RAY_ADDRESS.fullmatch(self.params["ray"]):
            raise UsageError(
                f"--ray: an address is host:port, ray://host:port, auto or local, not {self.params['ray']!r}"
            )
        if self.params["force"] and self.params["skip_existing"]:
            raise UsageError("--force and --skip-existing exclude each other")
        if self.params["name"] is not None and self.params["out_dir"] is None:
            raise UsageError("--name: needs --out-dir")
        options.checked({name: self.params[name] for name in ("output", "out_dir", "name", "jobs", "model")})
        self.output: str | None = self.params["output"]

    def run(self, task: str, sources: Sequence[str | None]) -> None:
        """Makes the outputs with the task of that name and exits with 1 if any failed; without a readable input no
        model is loaded. `sources` is [None] where nothing goes in."""
        from audiolm_cli.command_line import jobs

        if not sources and self.params["jobs"] is None and _piped():
            sources = ["-"]
            if self.output is None and self.params["out_dir"] is None:
                self.output = "-"
        fail_fast, planned = self.params["fail_fast"], self._plan(sources)
        usable = jobs.readable(planned, self.console)
        failed = len(planned) - len(usable)
        if usable and not (failed and fail_fast):
            self.console.overall = (0, len(usable), 0.0)
            with self.console.status(f"loading {display(self.params['model'])}"):
                from audiolm_cli.command_line.tasks import TaskSpec

                given = {f.name: self.params[f.name] for f in fields(TaskSpec) if f.name in self.params}
                spec = TaskSpec(task, **given)
                made_here = spec.task(self.console) if self.params["ray"] is None else None
            if made_here is not None:
                failed += jobs.run(usable, made_here, self.console, fail_fast)
            else:
                from audiolm_cli.command_line import cluster

                with self.console.status("connecting to the cluster"):
                    cluster.connect(self.params["ray"], quiet=not self.console.debug)
                failed += cluster.run(usable, spec, self.console, fail_fast)
        if failed:
            raise typer.Exit(1)

    def _plan(self, sources: Sequence[str | None]) -> list[Job]:
        """The jobs, with the checks that a command can fail before it starts."""
        from audiolm_cli.command_line import planning

        defaults = options.checked({name: self.params[name] for name in options.OWN if name in self.params})
        seeded = "seed" in defaults
        if seeded and defaults["seed"] is None:
            defaults["seed"] = secrets.randbits(32)
        requests = self._requests(sources, defaults)
        piped = any(request.output == "-" for request in requests)
        if piped and self.console.json:
            raise UsageError("-o - and --json both need standard output")
        if piped and sys.stdout is not None and sys.stdout.isatty():
            raise UsageError("standard output is a terminal: redirect it, or name a file with -o")
        if any(request.options.plot for request in requests):
            from audiolm_cli.command_line import plot

            plot.check()
        if any(request.options.no_watermark for request in requests):
            self.console.say("--no-watermark: `audiolm detect` will not know the outputs again by a mark")
        takes_stdin = any("-" in (request.source, request.options.speaker) for request in requests)
        if self.params["jobs"] == "-" and takes_stdin:
            raise UsageError("standard input cannot be both the job list and an input")
        if self.params["ray"] is not None:
            if piped or takes_stdin:
                raise UsageError("--ray: other machines do not see this one's standard input and output: name files")
            if ":" in self.params["device"]:
                raise UsageError("--device: with --ray, Ray chooses which GPU: give cuda alone")
        reads = [(self.params["jobs"], "the job list")] if self.params["jobs"] is not None else []
        reads += [(str(file), "a file of the bundle") for file in _files(self.params["model"])]
        places = {name: self.params[name] for name in ("out_dir", "name", "force", "skip_existing")}
        planned = planning.plan(requests, suffixes=self.suffixes, reads=reads, **places)
        if skipped := sum(request.samples for request in requests) - len(planned):
            self.console.note(f"{skipped} outputs exist already and are kept")
        if seeded and planned:
            self.console.note(f"seed {defaults['seed']}")
        if not self.params["force"] and not piped:
            seed = f" --seed {defaults['seed']}" if seeded else ""
            self.console.rest = f"; the same command with --skip-existing{seed} makes the rest"
        return planned

    def _requests(self, sources: Sequence[str | None], defaults: dict[str, Any]) -> list[options.Request]:
        takes_input = sources != [None]
        if (listed := self.params["jobs"]) is not None:
            if (takes_input and sources) or self.output:
                raise UsageError("--jobs names inputs and outputs itself: leave out INPUT and -o")
            keys = [*defaults, "output", *(["input"] if takes_input else [])]
            from audiolm_cli.audio import inputs

            lines = inputs.read_bytes(listed).splitlines()
            return options.read_jobs(lines, display(listed), keys, defaults, takes_input)
        if not sources:
            raise UsageError("name the inputs: INPUT..., or --jobs FILE")
        if self.output is not None and self.params["out_dir"] is not None:
            raise UsageError("name the output: either -o FILE or --out-dir FOLDER")
        if self.output is not None and len(sources) > 1:
            raise UsageError("several inputs need --out-dir instead of -o")
        for source in filter(None, sources):
            options.path("INPUT", source)
        return [options.request({**defaults, "input": source, "output": self.output}) for source in sources]


def check_device(device: str) -> None:
    """Raises UsageError for what is no device's name."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", device):
        raise UsageError(f"--device: must be auto, cpu, cuda, cuda:N or mps, not {device!r}")


def _piped() -> bool:
    """Whether something is piped, or redirected from a file, into standard input."""
    with contextlib.suppress(OSError, AttributeError, ValueError):  # closed, or no file
        return not stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode)
    return False


def _files(model: str) -> list[Path]:
    """What a bundle's folder holds; empty for the name of a bundle."""
    if os.path.isfile(os.path.join(model, "config.json")):
        with contextlib.suppress(OSError):
            return list(Path(model).iterdir())
    return []
