"""A list of inputs and outputs: all names worked out before the model loads, then run with one report an item."""

from __future__ import annotations

import itertools
import os
import string
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from audiolm_cli.console import Console, Progress
from audiolm_cli.errors import AudioLMError, OutputError, UsageError, display
from audiolm_cli.options import Options, Request

DEFAULT = Options()


@dataclass(frozen=True)
class Job:
    """One output: `sample` number of the request at `position` in the list; both key the random numbers."""

    source: str | None  # path, "-" for standard input, None where nothing goes in
    position: int
    sample: int
    target: str  # path, or "-" for standard output
    options: Options = DEFAULT


class Task(Protocol):
    """What is done with each job; `tasks.py` has one for each command."""

    bundle: Any
    batch_size: int
    force: bool  # replace outputs that are there

    def check(self, options: Options) -> None:
        """Raises UsageError for options that cannot be followed."""

    def load(self, job: Job) -> Any:
        """Reads the input; an AudioLMError fails this job only."""

    def seconds(self, job: Job, loaded: Any) -> float:
        """Of audio that this job will make; 0 where the task shows no progress."""

    def work(self, jobs: list[Job], loaded: list[Any], progress: Progress | None) -> Iterator[Any]:
        """Turns up to `batch_size` inputs of jobs alike but for seed and plot into results, in their order."""

    def save(self, job: Job, result: Any) -> dict[str, Any]:
        """Writes the output and returns what to report about it; an AudioLMError fails this job only."""


def plan(
    requests: Sequence[Request],
    *,
    out_dir: str | None,
    suffixes: Sequence[str],
    name: str | None = None,
    force: bool = False,
    skip_existing: bool = False,
) -> list[Job]:
    """The jobs that make what is asked for, in its order.

    An output a.wav with several samples means a.0.wav, a.1.wav, ...; in `out_dir`, which is made if need be, x.flac
    becomes x.wav, or x.0.wav and so on, or what the template `name` says ({stem}, {index}, {position}). `suffixes` are
    the formats that a name may end in; the first is that of `out_dir`. `skip_existing` leaves out what is there.

    Raises UsageError for a combination that cannot be, OutputError for a name that exists (without `force`), that two
    jobs share or that is an input, and for a folder that cannot take it.
    """
    if [request.source for request in requests].count("-") > 1:
        raise UsageError("standard input (-) can be only one of the inputs")
    if name is not None:
        _check_template(name, suffixes, several=any(request.samples > 1 for request in requests))
    for request in requests:
        if request.output is None and out_dir is None:
            raise UsageError("name the output: either -o FILE or --out-dir FOLDER")
        if request.output == "-" and len(requests) * request.samples > 1:
            raise UsageError("only one sample can go to standard output")
        if request.output not in (None, "-") and Path(str(request.output)).suffix.lower() not in suffixes:
            raise UsageError(f"{display(str(request.output))}: the name must end in {' or '.join(suffixes)}")
    if out_dir is not None and any(request.output is None for request in requests):
        _make_folder(out_dir)
    jobs = [
        Job(request.source, position, sample, _target(request, position, sample, out_dir, name, suffixes[0]), options)
        for position, request in enumerate(requests)
        for options in (request.options,)
        for sample in range(request.samples)
    ]
    return _checked_targets(jobs, force, skip_existing)


def readable(jobs: list[Job], console: Console) -> list[Job]:
    """The jobs whose inputs can be opened; reports each input that cannot, before a model is loaded for it."""
    from audiolm_cli import inputs

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
            console.result(task.save(job, result))
        except AudioLMError as error:
            console.error(error)
            failed += 1
    return failed


def _check_template(name: str, suffixes: Sequence[str], several: bool) -> None:
    try:
        used = {field for _, field, _, _ in string.Formatter().parse(name) if field is not None}
    except ValueError as error:
        raise UsageError(f"--name: {error}") from None
    if unknown := used - {"stem", "index", "position"}:
        raise UsageError(f"--name: knows {{stem}}, {{index}} and {{position}}, not {{{sorted(unknown)[0]}}}")
    if os.sep in name or (os.altsep and os.altsep in name):
        raise UsageError("--name: names files in the folder of --out-dir, not folders")
    if several and "index" not in used:
        raise UsageError("--name: needs {index} to tell several samples apart")
    if Path(name).suffix.lower() not in suffixes:
        raise UsageError(f"--name: must end in {' or '.join(suffixes)}")


def _target(request: Request, position: int, sample: int, out_dir: str | None, name: str | None, suffix: str) -> str:
    if request.output == "-":
        return "-"
    if request.output is None:
        stem = {None: "generated", "-": "stdin"}.get(request.source) or Path(str(request.source)).stem
        name = name or ("{stem}.{index}" if request.samples > 1 else "{stem}") + suffix
        return os.path.join(str(out_dir), name.format(stem=stem, index=sample, position=position))
    root, suffix = os.path.splitext(request.output)
    return f"{root}.{sample}{suffix}" if request.samples > 1 else request.output


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"{display(folder)}: not a folder") from None
    except OSError as error:
        raise OutputError(f"{display(folder)}: cannot be made: {error.strerror}") from None


def _checked_targets(jobs: list[Job], force: bool, skip_existing: bool) -> list[Job]:
    """The jobs that are left to do."""
    inputs = {os.path.realpath(job.source) for job in jobs if job.source not in (None, "-")}
    inputs |= {os.path.realpath(job.options.speaker) for job in jobs if job.options.speaker}
    taken: dict[str, Job] = {}
    wanted = []
    for job in jobs:
        if job.target == "-":
            wanted.append(job)
            continue
        name, path = display(job.target), os.path.realpath(job.target)
        if path in taken:
            both = [f"sample {j.sample}" if j.source is None else display(j.source) for j in (taken[path], job)]
            raise OutputError(f"{name}: {' and '.join(both)} would both be written there")
        taken[path] = job
        if path in inputs:
            raise OutputError(f"{name}: is an input itself and would be lost")
        if os.path.isdir(path):
            raise OutputError(f"{name}: is a folder; use --out-dir")
        picture = job.options.plot
        if picture and os.path.lexists(picture) and not (force or skip_existing):
            raise OutputError(f"{display(picture)}: exists already; use --force to replace it")
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            raise OutputError(f"{name}: there is no folder {display(os.path.dirname(job.target))}")
        if not os.access(folder, os.W_OK):
            raise OutputError(f"{name}: the folder cannot be written to")
        if not os.path.lexists(path) or force:
            wanted.append(job)
        elif not skip_existing:
            raise OutputError(f"{name}: exists already; use --force to replace it, --skip-existing to keep it")
    return wanted
