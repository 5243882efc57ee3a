"""Defers Ctrl-C to a moment at which everything can be saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def deferred(save: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Defers SIGINT and SIGTERM until the yielded function is called, which calls `save` first. A second signal acts at
    once. Outside the main thread, which alone gets signals, nothing changes."""
    caught: list[tuple[int, FrameType | None]] = []
    before: dict[int, Callable[[int, FrameType | None], object]] = {}

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append((number, frame))
        if len(caught) > 1:
            before[number](number, frame)

    def check() -> None:
        if caught:
            save()
            before[caught[0][0]](*caught[0])

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(handler := signal.getsignal(number)):  # else it is ignored, or ends the program
                before[number] = handler
                signal.signal(number, catch)
    try:
        yield check
    finally:
        for restored, handler in before.items():
            signal.signal(restored, handler)
