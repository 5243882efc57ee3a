"""A list of jobs, as `planning` makes it: run in batches, with one report an item."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

from audiolm_cli.command_line.options import Options
from audiolm_cli.console import Console, Progress
from audiolm_cli.errors import AudioLMError, ExistsError, display

DEFAULT = Options()


@dataclass(frozen=True)
class Job:
    """One output: `sample` number of the request at `position` in the list; both key the random numbers."""

    source: str | None  # path, "-" for standard input, None where nothing goes in
    position: int
    sample: int
    target: str  # path, or "-" for standard output
    options: Options = DEFAULT
    kept: str | None = None  # of output and picture the one that is there already, if only one is


class Task(Protocol):
    """What is done with each job; `tasks.py` has one for each command."""

    bundle: Any
    batch_size: int
    force: bool  # replace outputs that are there
    skip_existing: bool  # keep them, also those that come up meanwhile

    def check(self, options: Options) -> None:
        """Raises UsageError for options that cannot be followed."""

    def load(self, job: Job) -> Any:
        """Reads the input; an AudioLMError fails this job only."""

    def seconds(self, job: Job, loaded: Any) -> float:
        """Of audio that this job will make; 0 where that does not tell how long it takes."""

    def work(self, jobs: list[Job], loaded: list[Any], progress: Progress | None) -> Iterator[Any]:
        """Turns up to `batch_size` inputs of jobs alike but for seed and plot into results, in their order."""

    def save(self, job: Job, result: Any) -> dict[str, Any]:
        """Writes the output and returns what to report about it; an AudioLMError fails this job only."""


def readable(jobs: list[Job], console: Console) -> list[Job]:
    """The jobs whose inputs can be opened; reports each input that cannot, before a model is loaded for it."""
    from audiolm_cli.audio import inputs

    usable: dict[str | None, bool] = {None: True}
    for source in dict.fromkeys(name for job in jobs for name in (job.options.speaker, job.source)):
        if source is not None:
            try:
                inputs.check(source)
                usable[source] = True
            except AudioLMError as error:
                console.error(error)
                usable[source] = False
    return [job for job in jobs if usable[job.source] and usable[job.options.speaker]]


def run(
    jobs: list[Job],
    task: Task,
    console: Console,
    fail_fast: bool = False,
    elsewhere: Callable[[list[list[Job]]], Iterator[int]] | None = None,
) -> int:
    """Runs the jobs in order and returns how many failed; each has said so itself. With `fail_fast` nothing is begun
    after the first failure. `elsewhere` turns batches into their numbers of failed jobs; by default `perform` does."""
    for options in dict.fromkeys(_alike(job) for job in jobs):
        task.check(options)
    failed, done, start = 0, 0, time.monotonic()
    console.overall = (done, len(jobs), start)
    listed = list(batches(jobs, task.batch_size))
    failures = elsewhere(listed) if elsewhere else (perform(batch, task, console, fail_fast) for batch in listed)
    for batch, failures_of_batch in zip(listed, failures, strict=True):
        failed += failures_of_batch
        if failed and fail_fast:
            break
        done += len(batch)
        console.overall = (done, len(jobs), start)
    return failed


def batches(jobs: list[Job], size: int) -> Iterator[list[Job]]:
    """Up to `size` jobs that stand together and differ in nothing but input, seed and picture."""
    for _, alike in itertools.groupby(jobs, _alike):
        while batch := list(itertools.islice(alike, size)):
            yield batch


def _alike(job: Job) -> Options:
    return replace(job.options, seed=0, plot=None)


def perform(batch: list[Job], task: Task, console: Console, fail_fast: bool = False) -> int:
    """Runs one batch, wherever that is, and returns how many of its jobs failed."""
    ready = []
    for job in batch:
        try:
            with console.status(f"reading {display(job.source)}" if job.source is not None else "starting"):
                ready.append((job, task.load(job)))
        except AudioLMError as error:
            console.error(error)
    failed = len(batch) - len(ready)
    if not ready or (failed and fail_fast):
        return failed
    with console.progress(sum(task.seconds(job, loaded) for job, loaded in ready)) as progress:
        results = list(task.work([job for job, _ in ready], [loaded for _, loaded in ready], progress))
    for (job, _), result in zip(ready, results, strict=True):  # what follows prints: the bars are gone
        try:
            with console.status("writing"):
                record = task.save(job, result)
            console.result(record)
        except AudioLMError as error:
            if isinstance(error, ExistsError) and task.skip_existing:
                console.note(f"{display(job.target)}: has come up meanwhile and is kept")
                continue
            console.error(error)
            failed += 1
    return failed
