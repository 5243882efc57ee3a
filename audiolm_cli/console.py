"""What the program says: messages and progress on stderr, results on stdout and nothing else there."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from audiolm_cli.errors import OutputError

Progress = Callable[[str, int, int], None]  # stage, tokens done, tokens in all; `decode` counts frames


@dataclass
class Console:
    """Where a command reports to; the fields are the options that every command has."""

    quiet: bool = False  # no notes, no progress
    json: bool = False  # results as JSON lines, otherwise as paths
    debug: bool = False  # tracebacks
    said: set[str] = field(default_factory=set)  # errors
    overall: tuple[int, int, float] = (0, 1, 0.0)  # outputs done and wanted, and when the first began (monotonic)

    def error(self, message: object) -> None:
        """Says what is wrong, once: many outputs may want one bad input."""
        if str(message) not in self.said:
            self.said.add(str(message))
            self.say(f"error: {message}")

    def note(self, message: str) -> None:
        if not self.quiet:
            self.say(message)

    def say(self, message: str) -> None:
        if sys.stderr is not None:  # print() would then go to stdout
            print("audiolm:", " ".join(message.splitlines()), file=sys.stderr, flush=True)

    def result(self, record: dict[str, Any]) -> None:
        """One output is done: its path, or the whole record with --json, as a line on stdout."""
        if record["path"] != "-":
            line = json.dumps(record).encode() if self.json else os.fsencode(record["path"])
            write_stdout(line + b"\n")

    def data(self, record: dict[str, Any], text: str) -> None:
        """What was asked for, on stdout: as text, or the record with --json."""
        write_stdout((json.dumps(record) if self.json else text).encode() + b"\n")

    @contextlib.contextmanager
    def progress(self, seconds: float) -> Iterator[Progress | None]:
        """A bar for each stage with tokens/s and the real-time factor, behind one for all outputs with the time left
        where there are many; None when nobody would see it.

        `seconds` is the audio that the tokens make: the real-time factor is time spent per second of it.
        """
        if self.quiet or sys.stderr is None or not sys.stderr.isatty():
            yield None
            return
        import rich.console
        from rich.progress import BarColumn, TaskID, TextColumn
        from rich.progress import Progress as Bars

        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}", style="dim")
        tasks: dict[str, tuple[TaskID, float]] = {}
        latest = time.monotonic()  # a stage begins where the one before it ended
        with Bars(*columns, console=rich.console.Console(stderr=True), transient=True) as bars:
            if self.overall[1] > 1:
                done, total, start = self.overall
                left = _clock((latest - start) / done * (total - done)) + " left" if done else ""
                bars.add_task(f"{done}/{total} outputs", completed=done, total=total, speed=left)

            def show(stage: str, done: int, total: int) -> None:
                nonlocal latest
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, speed=""), latest
                task, start = tasks[stage]
                latest = time.monotonic()
                elapsed, speed = latest - start, ""
                if done and elapsed > 0:
                    unit = "frames" if stage == "decode" else "tokens"
                    speed = f"{done / elapsed:.0f} {unit}/s"
                    if seconds:
                        speed += f", real-time factor {elapsed * total / (done * seconds):.2f}"
                bars.update(task, completed=done, total=total, speed=speed)

            yield show


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def write_stdout(data: bytes) -> None:
    """Writes to standard output at once; raises OutputError when it is closed or full, BrokenPipeError as it is."""
    stdout = sys.__stdout__  # sys.stdout is what libraries print to
    if stdout is None:
        raise OutputError("standard output: it is closed")
    try:
        stdout.buffer.write(data)
        stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output: cannot be written: {error.strerror}") from None
