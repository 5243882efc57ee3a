"""Schedules many clients: running jobs take turns, others queue, and those of departed clients end.

Each job has a thread, and as many threads work at a time as there are processors for them; a thread hands over within a
stage, after `SLICE` seconds. A job's first turn lasts until its first sound, up to `FIRST` seconds: shared, that time
would delay everybody's first sound. Outputs do not depend on the other jobs, which share nothing but weights.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

SLICE = 0.1  # seconds of work before the turn is handed over
FIRST = 2.0  # the same before the first sound


class BusyError(Exception):
    """The queue is full."""


class ClosingError(Exception):
    """The server is shutting down."""


class _DroppedError(Exception):
    """The client has gone."""


class Turns:
    """A lock for `places` holders at a time that goes to whoever has waited longest for it."""

    def __init__(self, places: int) -> None:
        self._guard, self._free = threading.Lock(), places
        self.waiting: collections.deque[threading.Event] = collections.deque()

    def take(self) -> None:
        with self._guard:
            if self._free:
                self._free -= 1
                return
            mine = threading.Event()
            self.waiting.append(mine)
        mine.wait()

    def give(self) -> None:
        with self._guard:
            if self.waiting:
                self.waiting.popleft().set()  # handed over without being released
            else:
                self._free += 1


class Job:
    """Work for one client; `received` yields its bytes in the event loop. The work may call `pause` at any time, which
    lets others take their turns and returns for how long, in seconds. `done` is called once the work has ended and
    nobody reads its bytes any more, since until then they take up memory."""

    def __init__(self, work: Callable[[Job], Iterator[bytes]], turns: Turns, done: Callable[[Job], None]):
        self.work, self.turns, self.done, self.working, self.dropped = work, turns, done, True, False
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
        """Runs the work in this thread."""
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
            last = error.with_traceback(None)  # the traceback would keep the output in memory
        finally:
            self.turns.give()
            self._end(working=False)
        self.say(last)

    def made(self) -> Generator[bytes, None, None]:
        yield from self.work(self)

    def say(self, item: bytes | Exception | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(self.items.put_nowait, item)

    def drop(self) -> None:
        """Ends the work at its next pause, or before it begins: nobody reads any more."""
        self.dropped = True
        cancelled = self.future is not None and self.future.cancel()
        self._end(working=self.working and not cancelled)

    def _end(self, working: bool) -> None:
        self.working = working
        if self.dropped and not working:
            self.done(self)

    async def received(self) -> AsyncIterator[bytes]:
        """Yields the work's bytes and raises its error. The work ends once nobody iterates any more."""
        try:
            while (item := await self.items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.drop()


class Workshop:
    """Runs up to `streams` jobs, `at_once` of them at the same moment; up to `queue` more wait."""

    def __init__(self, streams: int, queue: int, at_once: int = 1):
        self.pool = ThreadPoolExecutor(streams, "audiolm-serve")
        self.turns, self.places, self.jobs, self.closing = Turns(at_once), streams + queue, set[Job](), False

    def check(self) -> None:
        """Raises BusyError or ClosingError if no job can begin."""
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
        """Refuses new jobs; those that have begun continue."""
        self.closing = True
        for job in list(self.jobs):
            if job.future and job.future.cancel():
                self.jobs.discard(job)
                job.say(ClosingError())

    def close(self) -> None:
        """Ends all jobs."""
        self.refuse()
        for job in list(self.jobs):
            job.drop()
        self.pool.shutdown()
