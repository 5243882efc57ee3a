"""The loop from requests to the exit code: plan, load, and run all batches, here or on a Ray cluster."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from audiolm_cli.command_line.arguments import NO_STREAM, OutputOptions, RunOptions, StreamOptions
from audiolm_cli.console import Console
from audiolm_cli.errors import AudioLMError, InputError, UsageError, display
from audiolm_cli.request import Request, SampledRequest

if TYPE_CHECKING:
    from audiolm_cli.command_line.batch import BatchRunner
    from audiolm_cli.command_line.planning import PlannedOutput


def run(
    request: Request,
    sources: Sequence[str | None],
    output_options: OutputOptions,
    run_options: RunOptions,
    console: Console,
    stream_options: StreamOptions = NO_STREAM,
) -> None:
    """Makes the outputs of a command and exits with 1 if any failed; loads no model if no input is readable. `sources`
    is [None] for commands without input."""
    planned = _planned(request, sources, output_options, run_options, console, stream_options)
    usable = with_readable_inputs(planned, console)
    failed = len(planned) - len(usable)
    if usable and not (failed and run_options.fail_fast):
        console.overall = (0, len(usable), 0.0)
        local, execute = run_options, None
        if run_options.ray is not None:
            from audiolm_cli.command_line import cluster

            with console.status("connecting to the cluster"):
                cluster.connect(run_options.ray, quiet=not console.debug)
            local = replace(run_options, device="cpu")  # for the checks here: only other machines may have a GPU
        with console.status(f"loading {display(run_options.model)}"):
            from audiolm_cli.command_line.batch import load_runner

            runner = load_runner(type(request), local, console)
            runner.stream_options = stream_options
        if run_options.ray is not None:
            execute = functools.partial(
                cluster.run_batches, kind=type(request), run_options=run_options, bundle=runner.bundle, console=console
            )
        failed += run_batches(usable, runner, console, run_options.fail_fast, execute)
    if failed:
        raise typer.Exit(1)


def process_files(
    files: Sequence[str], work: Callable[..., dict[str, Any]], console: Console, fail_fast: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each file with the result of `work`; reports files that fail, and then exits with 1 at the end."""
    console.kind, failed, start = "files", False, time.monotonic()
    for number, file in enumerate(files):
        console.overall = (number, len(files), start)
        try:
            with console.progress(0) as progress:
                found = work(file, progress=progress)
        except InputError as error:
            console.error(error)
            failed = True
            if fail_fast:
                break
            continue
        yield file, found
        console.made += 1
    if failed:
        raise typer.Exit(1)


# batches -> the number of failed outputs of each
BatchExecutor = Callable[[list[list["PlannedOutput"]]], Iterable[int]]


def run_batches(
    planned: Sequence[PlannedOutput],
    runner: BatchRunner,
    console: Console,
    fail_fast: bool = False,
    execute: BatchExecutor | None = None,
) -> int:
    """Makes the outputs in order and returns the number that failed, each already reported. `fail_fast` stops at the
    first failure. `execute` runs batches elsewhere; by default the runner does, here."""
    from audiolm_cli.command_line import planning

    for request in dict.fromkeys(output.request.shared() for output in planned):
        runner.check(request)
    planning.check_formats(planned, runner.rate)
    failed, done, start = 0, 0, time.monotonic()
    console.overall = (done, len(planned), start)
    listed = list(batches(planned, runner.batch_size))
    failures = execute(listed) if execute else (runner.run(batch, fail_fast) for batch in listed)
    for batch, failures_of_batch in zip(listed, failures, strict=True):
        failed += failures_of_batch
        if failed and fail_fast:
            break
        done += len(batch)
        console.overall = (done, len(planned), start)
    return failed


def batches(planned: Iterable[PlannedOutput], size: int) -> Iterator[list[PlannedOutput]]:
    """Batches of up to `size` consecutive outputs that differ only in input, seed and names."""
    for _, alike in itertools.groupby(planned, lambda output: output.request.shared()):
        while batch := list(itertools.islice(alike, size)):
            yield batch


def with_readable_inputs(planned: Sequence[PlannedOutput], console: Console) -> list[PlannedOutput]:
    """The outputs whose inputs can be opened; reports each input that cannot, before a model loads."""
    from audiolm_cli.audio import inputs

    usable: dict[str | None, bool] = {None: True}
    for path in dict.fromkeys(path for output in planned for path in (output.request.speaker, output.request.input)):
        if path is not None:
            try:
                inputs.check(path)
                usable[path] = True
            except AudioLMError as error:
                console.error(error)
                usable[path] = False
    return [output for output in planned if usable[output.request.input] and usable[output.request.speaker]]


def _planned(
    request: Request,
    sources: Sequence[str | None],
    output_options: OutputOptions,
    run_options: RunOptions,
    console: Console,
    stream_options: StreamOptions,
) -> list[PlannedOutput]:
    """The outputs to make, after all checks that a command can fail before it starts."""
    from audiolm_cli.command_line import planning

    if stream_options.play:
        output_options = _played(output_options, stream_options, run_options)
    if not sources and output_options.jobs is None and _piped():
        sources = ["-"]
        if output_options.output is None and output_options.out_dir is None:
            output_options = replace(output_options, output="-")
    asked = planning.requests(request, sources, output_options)
    planning.check_streams(asked, output_options.jobs, run_options, stream_options)
    if any(each.plot for each in asked):
        from audiolm_cli.command_line import plot

        plot.check()
    if any(each.no_watermark for each in asked):
        console.say("--no-watermark: `audiolm detect` will not know the outputs again by a mark")
    reads = [(output_options.jobs, "the job list")] if output_options.jobs is not None else []
    reads += [(str(file), "a file of the bundle") for file in _files(run_options.model)]
    kept = {"force": run_options.force, "skip_existing": run_options.skip_existing}
    planned = planning.plan(asked, out_dir=output_options.out_dir, name=output_options.name, reads=reads, **kept)
    if skipped := sum(each.num_samples for each in asked) - len(planned):
        console.note(f"{skipped} outputs exist already and are kept")
    seed = request.seed if isinstance(request, SampledRequest) else None
    if seed is not None and planned:
        console.note(f"seed {seed}")
    if not run_options.force and all(each.output != "-" for each in asked):
        again = f" --seed {seed}" if seed is not None else ""
        console.rest = f"; the same command with --skip-existing{again} makes the rest"
    return planned


def _played(output_options: OutputOptions, stream_options: StreamOptions, run_options: RunOptions) -> OutputOptions:
    """The options of outputs that are played, which are not written anywhere else."""
    from audiolm_cli.command_line import streaming as player

    if (output_options.output, output_options.out_dir, output_options.jobs, stream_options.format) != (None,) * 4:
        raise UsageError("--play: plays one output and writes none: leave out -o, --out-dir, --jobs and --format")
    if run_options.json:
        raise UsageError("--play: leaves nothing to tell in --json")
    player.check_player()
    return replace(output_options, output="-")


def _piped() -> bool:
    """Whether standard input is a pipe or a file."""
    with contextlib.suppress(OSError, AttributeError, ValueError):  # closed, or not a file
        return not stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode)
    return False


def _files(model: str) -> list[Path]:
    """The files of a bundle's folder; empty if `model` is a name."""
    if os.path.isfile(os.path.join(model, "config.json")):
        with contextlib.suppress(OSError):
            return list(Path(model).iterdir())
    return []
