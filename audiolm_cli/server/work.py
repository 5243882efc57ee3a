"""Many clients and one processor: who is working takes turns, who waits has a place in a queue, who leaves is dropped.

Each job has a thread, of which one works at a time; it hands the turn on within a stage, after `SLICE` seconds. A first
turn goes on to the first sound, if that comes soon: all would hear theirs late if they shared that time. What is made
does not depend on who else is there: nothing of a stream is shared.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

SLICE = 0.1  # seconds of work, after which others have their turn
FIRST = 2.0  # the same before there is anything to hear


class BusyError(Exception):
    """There is no place left in the queue."""


class ClosingError(Exception):
    """The server is shutting down."""


class _DroppedError(Exception):
    """Nobody waits for it any more."""


class Turns:
    """A lock that goes to whoever has waited longest for it."""

    def __init__(self) -> None:
        self._guard, self._taken = threading.Lock(), False
        self.waiting: collections.deque[threading.Event] = collections.deque()

    def take(self) -> None:
        with self._guard:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Event()
            self.waiting.append(mine)
        mine.wait()

    def give(self) -> None:
        with self._guard:
            if self.waiting:
                self.waiting.popleft().set()  # it stays taken
            else:
                self._taken = False


class Job:
    """Work for one client, whose bytes `received` yields in the event loop. The work may call `pause` at any time, in
    which others have their turns, and which says for how long, in seconds."""

    def __init__(self, work: Callable[[Job], Iterator[bytes]], turns: Turns, done: Callable[[Job], None]):
        self.work, self.turns, self.done, self.dropped = work, turns, done, False
        self.loop, self.items = asyncio.get_running_loop(), asyncio.Queue[bytes | Exception | None]()
        self.future: Future[None] | None = None
        self.since, self.slice = 0.0, FIRST

    def pause(self) -> float:
        if self.dropped:
            raise _DroppedError
        now = time.monotonic()
        if not self.turns.waiting or now - self.since < self.slice:
            return 0.0
        self.turns.give()
        self.turns.take()
        self.since, self.slice = time.monotonic(), SLICE
        if self.dropped:
            raise _DroppedError
        return self.since - now

    def run(self) -> None:
        """Works, in a thread of its own."""
        last: Exception | None = None
        self.turns.take()
        try:
            self.since = time.monotonic()
            with contextlib.closing(self.made()) as made:
                for data in made:
                    self.say(data)
                    self.slice = SLICE
                    self.pause()
        except _DroppedError:
            last = ClosingError()
        except Exception as error:
            last = error.with_traceback(None)  # which would keep all that was made
        finally:
            self.turns.give()
            self.done(self)
        self.say(last)

    def made(self) -> Generator[bytes, None, None]:
        yield from self.work(self)

    def say(self, item: bytes | Exception | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(self.items.put_nowait, item)

    def drop(self) -> None:
        """Ends the work at its next pause; what has not begun does not begin."""
        self.dropped = True
        if self.future and self.future.cancel():
            self.done(self)

    async def received(self) -> AsyncIterator[bytes]:
        """What is made, as it comes; raises what went wrong. The work ends when nobody listens any more."""
        try:
            while (item := await self.items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.drop()


class Workshop:
    """Up to `streams` jobs at a time, and as many as `queue` that wait for them."""

    def __init__(self, streams: int, queue: int):
        self.pool = ThreadPoolExecutor(streams, "audiolm-serve")
        self.turns, self.places, self.jobs, self.closing = Turns(), streams + queue, set[Job](), False

    def check(self) -> None:
        """Raises BusyError, ClosingError where no job could begin."""
        if self.closing:
            raise ClosingError
        if len(self.jobs) >= self.places:
            raise BusyError

    def begin(self, work: Callable[[Job], Iterator[bytes]]) -> Job:
        self.check()
        job = Job(work, self.turns, self.jobs.discard)
        self.jobs.add(job)
        job.future = self.pool.submit(job.run)
        return job

    def refuse(self) -> None:
        """Lets nothing begin any more; what has begun goes on."""
        self.closing = True
        for job in list(self.jobs):
            if job.future and job.future.cancel():
                self.jobs.discard(job)
                job.say(ClosingError())

    def close(self) -> None:
        """Ends all work."""
        self.refuse()
        for job in list(self.jobs):
            job.drop()
        self.pool.shutdown()
