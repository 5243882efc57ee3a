"""A list of inputs and outputs: all names worked out before the model loads, then run with one report an item."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from audiolm_cli.console import Console, Progress
from audiolm_cli.errors import AudioLMError, OutputError, UsageError, display


@dataclass(frozen=True)
class Job:
    """One output: `sample` number of the input at `position` in the list; both key the random numbers."""

    source: str  # path, or "-" for standard input
    position: int
    sample: int
    target: str  # path, or "-" for standard output


class Task(Protocol):
    """What is done with each job; `tasks.py` has one for each command."""

    batch_size: int
    seconds: float  # of audio made per job; 0 where the task shows no progress

    def load(self, job: Job) -> Any:
        """Reads the input; an AudioLMError fails this job only."""

    def work(self, inputs: list[Any], progress: Progress | None) -> Iterator[Any]:
        """Turns up to `batch_size` inputs into results, in their order."""

    def save(self, job: Job, result: Any) -> dict[str, Any]:
        """Writes the output and returns what to report about it; an AudioLMError fails this job only."""


def plan(
    sources: Sequence[str],
    *,
    output: str | None,
    out_dir: str | None,
    suffixes: Sequence[str],
    samples: int = 1,
    force: bool = False,
) -> list[Job]:
    """The jobs that make `samples` outputs of each source, in the order of the sources.

    `-o a.wav` with several samples means a.0.wav, a.1.wav, ...; in `out_dir`, which is made if need be, x.flac becomes
    x.wav, or x.0.wav and so on. `suffixes` are the formats that `output` may name; the first is that of `out_dir`.

    Raises UsageError for a combination that cannot be, OutputError for a name that exists (without `force`), that two
    jobs share or that is an input, and for a folder that cannot take it.
    """
    if (output is None) == (out_dir is None):
        raise UsageError("name the output: either -o FILE or --out-dir FOLDER")
    if sources.count("-") > 1:
        raise UsageError("standard input (-) can be only one of the inputs")
    if output is not None:
        if len(sources) > 1:
            raise UsageError("several inputs need --out-dir instead of -o")
        if output == "-" and samples > 1:
            raise UsageError("only one sample can go to standard output")
        if output != "-" and Path(output).suffix.lower() not in suffixes:
            raise UsageError(f"{display(output)}: the name must end in {' or '.join(suffixes)}")
    else:
        _make_folder(str(out_dir))
    jobs = [
        Job(source, position, sample, _target(source, sample if samples > 1 else None, output, out_dir, suffixes[0]))
        for position, source in enumerate(sources)
        for sample in range(samples)
    ]
    _check_targets(jobs, force)
    return jobs


def readable(jobs: list[Job], console: Console) -> list[Job]:
    """The jobs whose input can be opened; reports each input that cannot, before a model is loaded for it."""
    from audiolm_cli import audio

    usable = {}
    for source in dict.fromkeys(job.source for job in jobs):
        try:
            audio.check(source)
            usable[source] = True
        except AudioLMError as error:
            console.error(error)
            usable[source] = False
    return [job for job in jobs if usable[job.source]]


def run(jobs: list[Job], task: Task, console: Console) -> int:
    """Runs the jobs in order, `task.batch_size` at a time, and returns how many failed; each has said so itself."""
    failed = 0
    bad: set[int] = set()  # positions of inputs that have been reported
    batch: list[tuple[Job, Any]] = []
    for index, job in enumerate(jobs):
        try:
            if job.position not in bad:
                batch.append((job, task.load(job)))
        except AudioLMError as error:
            console.error(error)
            bad.add(job.position)
        failed += job.position in bad
        if batch and (len(batch) == task.batch_size or index == len(jobs) - 1):
            label = f"[{index + 1}/{len(jobs)}] " if len(jobs) > 1 else ""
            failed += _run_batch(batch, task, console, label)
            batch = []
    return failed


def _run_batch(batch: list[tuple[Job, Any]], task: Task, console: Console, label: str) -> int:
    with console.progress(label, task.seconds * len(batch)) as progress:
        results = list(task.work([loaded for _, loaded in batch], progress))
    failed = 0  # what follows prints: the bars are gone
    for (job, _), result in zip(batch, results, strict=True):
        try:
            console.result(task.save(job, result))
        except AudioLMError as error:
            console.error(error)
            failed += 1
    return failed


def _target(source: str, sample: int | None, output: str | None, out_dir: str | None, suffix: str) -> str:
    if output == "-":
        return "-"
    if output is None:
        stem = "stdin" if source == "-" else Path(source).stem
        output = os.path.join(str(out_dir), stem + suffix)
    if sample is None:
        return output
    root, suffix = os.path.splitext(output)
    return f"{root}.{sample}{suffix}"


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"{display(folder)}: not a folder") from None
    except OSError as error:
        raise OutputError(f"{display(folder)}: cannot be made: {error.strerror}") from None


def _check_targets(jobs: list[Job], force: bool) -> None:
    inputs = {os.path.realpath(job.source) for job in jobs if job.source != "-"}
    taken: dict[str, Job] = {}
    for job in jobs:
        if job.target == "-":
            continue
        name, path = display(job.target), os.path.realpath(job.target)
        if path in taken:
            both = f"{display(taken[path].source)} and {display(job.source)}"
            raise OutputError(f"{name}: {both} would both be written there")
        taken[path] = job
        if path in inputs:
            raise OutputError(f"{name}: is an input itself and would be lost")
        if os.path.isdir(path):
            raise OutputError(f"{name}: is a folder; use --out-dir")
        if os.path.lexists(path) and not force:
            raise OutputError(f"{name}: exists already; use --force to replace it")
        folder = os.path.dirname(path)
        if not os.path.isdir(folder):
            raise OutputError(f"{name}: there is no folder {display(os.path.dirname(job.target))}")
        if not os.access(folder, os.W_OK):
            raise OutputError(f"{name}: the folder cannot be written to")
