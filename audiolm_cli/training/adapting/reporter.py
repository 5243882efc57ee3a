"""Reports the progress of a training: a bar with the time left on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from audiolm_cli.console import Console, clock

if TYPE_CHECKING:
    from rich.progress import Progress


class Reporter(contextlib.AbstractContextManager["Reporter"]):
    """Reports through a console. `share` gives the bar's position, 0 to 1; `left` the seconds left, None if unknown."""

    def __init__(self, console: Console, share: Callable[[], float], left: Callable[[], float | None]):
        self.console, self.share, self.left = console, share, left
        self._bars: Progress | None = None

    def __enter__(self) -> Reporter:
        if self.console.terminal:
            import rich.console
            from rich.progress import BarColumn, Progress, TextColumn
            from rich.table import Column

            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None, table_column=Column(ratio=1)),
                TextColumn("{task.percentage:>3.0f} %"),
                TextColumn("{task.fields[left]}"),
                console=rich.console.Console(stderr=True),
                transient=True,
                expand=True,
            )
            self._task = self._bars.add_task("", total=1.0, left="")
            self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def say(self, text: str) -> None:
        self.console.note(text)

    def doing(self, text: str) -> None:
        """The current step, with the bar's position."""
        if self._bars is not None:
            left = self.left()
            more = "" if left is None else f"{clock(max(0.0, left))} left"
            self._bars.update(self._task, description=text, completed=min(1.0, self.share()), left=more)
