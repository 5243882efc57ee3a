"""Output for users: messages and progress on stderr; only results on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from audiolm_cli.errors import OutputError

Progress = Callable[[str, float, int], None]  # stage, tokens done, total tokens; `decode` counts frames
Tell = Callable[[float], None]  # additional tokens done in one stage
CLEAR = "\r\x1b[2K"  # clears a terminal's line


def counted(progress: Callable[[str, float, Any], None] | None, stage: str, total: float) -> Tell:
    """Reports a stage's running total to `progress`."""
    done = 0.0

    def tell(more: float) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(stage, done, total)

    tell(0)
    return tell


class Clock:
    """Time and tokens of every stage, reported to the caller's progress. Stages nest: time counts for the innermost
    one running."""

    def __init__(self, progress: Progress | None):
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self.tokens: dict[str, int] = {}
        self._running: str | None = None
        self._since = 0.0

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the time spent to a stage's seconds."""
        before = self._turn(name)
        try:
            yield
        finally:
            self._turn(before)

    def _turn(self, name: str | None) -> str | None:
        now = time.perf_counter()
        if self._running is not None:
            self.seconds[self._running] = self.seconds.get(self._running, 0.0) + now - self._since
        before, self._running, self._since = self._running, name, now
        return before

    def leave_out(self, seconds: float) -> None:
        """Takes seconds just spent on something else off the running stage."""
        self._since += seconds

    def counted(self, name: str, total: float) -> Tell:
        """Counts a stage's tokens, out of `total`, as they are reported."""

        def count(name: str, done: float, total: float) -> None:
            self.tokens[name] = round(done)
            if self.progress is not None and total < float("inf"):
                self.progress(name, done, int(total))

        return counted(count, name, total)


@dataclass
class Console:
    """A command's reports to the user; the first fields are options of every command."""

    quiet: bool = False  # no notes, no progress
    json: bool = False  # results as JSON lines, otherwise as paths
    debug: bool = False  # tracebacks
    said: set[str] = field(default_factory=set)  # errors already printed
    overall: tuple[int, int, float] = (
        0,
        0,
        0.0,
    )  # outputs done or failed, total, start of the first one (monotonic)
    made: int = 0  # outputs done
    kind: str = "outputs"
    rest: str = ""  # how to make the rest after an interrupt
    showing: str = ""  # on a terminal's last line

    def error(self, message: object) -> None:
        """Prints an error, once: many outputs may share one bad input."""
        if str(message) not in self.said:
            self.said.add(str(message))
            self.say(f"error: {message}")

    def note(self, message: str) -> None:
        if not self.quiet:
            self.say(message)

    @property
    def hearer(self) -> Callable[[str], None] | None:
        """The function that prints notes; None with --quiet."""
        return None if self.quiet else self.note

    def say(self, message: str) -> None:
        if sys.stderr is not None:  # otherwise print() would write to stdout
            line = f"audiolm: {' '.join(message.splitlines())}\n"
            print(f"{CLEAR}{line}{self.showing}" if self.showing else line, end="", file=sys.stderr, flush=True)

    def interrupted(self) -> None:
        """Reports how much was done before Ctrl-C."""
        if self.overall[1]:
            self.note(f"interrupted: {self.made} of {self.overall[1]} {self.kind} are done{self.rest}")

    def result(self, record: dict[str, Any]) -> None:
        """Prints a finished output to stdout: its path, or the full record with --json."""
        self.made += 1
        if record["path"] != "-":
            line = json.dumps(record).encode() if self.json else os.fsencode(record["path"])
            write_stdout(line + b"\n")

    def data(self, record: dict[str, Any], text: str) -> None:
        """Prints requested information to stdout: as text, or the record with --json."""
        write_stdout((json.dumps(record) if self.json else text).encode() + b"\n")

    @property
    def terminal(self) -> bool:
        """Whether progress is visible to a user."""
        return not self.quiet and sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    @contextlib.contextmanager
    def status(self, doing: str) -> Iterator[None]:
        """Shows the current action on a terminal's last line, on stderr, until it ends."""
        if not self.terminal:
            yield
            return
        self.showing = f"audiolm: {' '.join(doing.splitlines())} ..."[: shutil.get_terminal_size().columns - 1]
        print(self.showing, end="", file=sys.stderr, flush=True)
        try:
            yield
        finally:
            self.showing = ""
            print(CLEAR, end="", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def progress(self, seconds: float) -> Iterator[Progress | None]:
        """A bar per stage with percent, time left, tokens/s and the real-time factor, after one for all outputs if
        there are several; None if nobody would see it.

        `seconds` is the audio that the tokens become: the real-time factor is time spent per second of it. 0: none.
        """
        if not self.terminal:
            yield None
            return
        import rich.console
        from rich.progress import BarColumn, TaskID, TextColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[left]}", table_column=Column(min_width=9)),
            TextColumn("{task.fields[speed]}", style="dim", table_column=Column(no_wrap=True)),
        )
        tasks: dict[str, TaskID] = {}
        spent: dict[str, float] = {}  # stages take turns: elapsed time belongs to the one that reports
        begun = latest = time.monotonic()
        terminal = rich.console.Console(stderr=True)
        terminal.width -= 3  # for the ^C that a terminal prints after the bars
        before, wanted, first = self.overall
        with Bars(*columns, console=terminal, transient=True, expand=True) as bars:
            if wanted > 1:
                name = f"{before}/{wanted} {self.kind}"
                left = _left(begun - first, before, wanted)
                overall = bars.add_task(name, completed=before, total=wanted, left=left, speed="")

            def show(stage: str, done: float, total: int) -> None:
                nonlocal latest
                if stage not in tasks:
                    tasks[stage] = bars.add_task(stage, left="", speed="")
                now, speed = time.monotonic(), ""
                elapsed = spent[stage] = spent.get(stage, 0.0) + now - latest
                task, latest = tasks[stage], now
                if done and elapsed > 0 and total > 1:
                    unit = "frames" if stage == "decode" else "tokens"
                    speed = f"{done / elapsed:.0f} {unit}/s"
                    if seconds:
                        speed += f", real-time factor {elapsed * total / (done * seconds):.2f}"
                bars.update(task, completed=done, total=total, left=_left(elapsed, done, total), speed=speed)
                if before and wanted > 1:
                    rest = (begun - first) / before * (wanted - before) - (latest - begun)
                    bars.update(overall, left=f"{clock(max(rest, 0))} left")

            yield show


def _left(elapsed: float, done: float, total: int) -> str:
    """The time left at the pace so far."""
    return f"{clock(elapsed / done * (total - done))} left" if 0 < done < total else ""


def clock(seconds: float) -> str:
    """As 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def write_stdout(data: bytes) -> None:
    """Writes to standard output and flushes; raises OutputError if it is closed or full, and BrokenPipeError."""
    stdout = sys.__stdout__  # libraries print to sys.stdout
    if stdout is None:
        raise OutputError("standard output: it is closed")
    try:
        stdout.buffer.write(data)
        stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output: cannot be written: {error.strerror}") from None
