"""Planning: decides which outputs a command makes, and their names, before a model loads.

The command line or a job list becomes requests, and each request a `PlannedOutput` per sample. Names that clash, exist
or cannot be written are refused here.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from audiolm_cli import checks
from audiolm_cli.audio import files, inputs
from audiolm_cli.checks import PICTURES, Template, listed
from audiolm_cli.command_line.arguments import NO_STREAM, OutputOptions, RunOptions, StreamOptions
from audiolm_cli.command_line.places import Places
from audiolm_cli.errors import OutputError, UsageError, display
from audiolm_cli.request import Request, SomeRequest


@dataclass(frozen=True)
class PlannedOutput:
    """One output: number `sample` of the request at `position` in the list; both key the random numbers."""

    request: Request
    position: int
    sample: int
    target: str  # path, or "-" for standard output
    picture: str | None = None  # path
    existing: str | None = None  # the one of output and picture that exists already, if only one does


def requests(request: SomeRequest, sources: Sequence[str | None], output_options: OutputOptions) -> list[SomeRequest]:
    """The request for each source, or for each line of the job list. `sources` is [None] for commands without input.

    Raises UsageError for missing inputs and for ambiguous inputs or outputs.
    """
    takes_input = sources != [None]
    if output_options.jobs is not None:
        if (takes_input and sources) or output_options.output:
            raise UsageError("--jobs names inputs and outputs itself: leave out INPUT and -o")
        return read_jobs(inputs.read_bytes(output_options.jobs).splitlines(), display(output_options.jobs), request)
    if not sources:
        raise UsageError("name the inputs: INPUT..., or --jobs FILE")
    if output_options.output is not None and output_options.out_dir is not None:
        raise UsageError("name the output: either -o FILE or --out-dir FOLDER")
    if output_options.output is not None and len(sources) > 1:
        raise UsageError("several inputs need --out-dir instead of -o")
    if not takes_input:
        return [replace(request, output=output_options.output)]
    return [replace(request, input=checks.source("INPUT", source), output=output_options.output) for source in sources]


def read_jobs(lines: Iterable[bytes], where: str, request: SomeRequest) -> list[SomeRequest]:
    """The requests of a job list: one JSON object a line, with defaults from `request`; blank lines are skipped. Raises
    UsageError with the line's number."""
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            asked = request.updated(json.loads(line))
            if "input" in asked.options() and not asked.input:
                raise UsageError("the key 'input' is missing" if asked.input is None else "input: must be a path")
            found.append(asked)
        except UnicodeDecodeError:
            raise UsageError(f"{where}:{number}: not UTF-8") from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}:{number}: not JSON ({error})") from None
        except UsageError as error:
            raise UsageError(f"{where}:{number}: {error}") from None
    if not found:
        raise UsageError(f"{where}: no jobs in it")
    return found


def check_streams(
    asked: Sequence[Request], jobs: str | None, run_options: RunOptions, stream_options: StreamOptions = NO_STREAM
) -> None:
    """Raises UsageError if standard input or output would have two uses, or be on another machine."""
    piped = any(request.output == "-" for request in asked)
    takes_stdin = any("-" in (request.input, request.speaker) for request in asked)
    if piped and run_options.json:
        raise UsageError("-o - and --json both need standard output")
    if stream_options.format and not piped:
        raise UsageError("--format: is of -o -; the suffix of a file says its own")
    for request in asked:
        if getattr(request, "duration", 0) == math.inf and (request.output != "-" or request.plot):
            raise UsageError("--duration inf: only for -o - or --play, and without --plot")
    if piped and not stream_options.play and sys.stdout is not None and sys.stdout.isatty():
        raise UsageError("standard output is a terminal: redirect it, or name a file with -o")
    if jobs == "-" and takes_stdin:
        raise UsageError("standard input cannot be both the job list and an input")
    if run_options.ray is not None:
        if piped or takes_stdin:
            raise UsageError("--ray: other machines do not see this one's standard input and output: name files")
        if ":" in run_options.device:
            raise UsageError("--device: with --ray, Ray chooses which GPU: give cuda alone")


def plan(
    asked: Sequence[Request],
    *,
    out_dir: str | None,
    reads: Iterable[tuple[str, str]] = (),
    name: str | None = None,
    force: bool = False,
    skip_existing: bool = False,
) -> list[PlannedOutput]:
    """The requested outputs, in order.

    An output a.wav with several samples means a.0.wav, a.1.wav, ...; in `out_dir`, which is created if needed, x.flac
    becomes x.wav, or x.0.wav and so on, or a name by the template `name` ({stem}, {index}, {position}). Pictures are
    named by such templates, too. `reads` lists further files for `Places` besides the inputs. `skip_existing` omits
    existing outputs; if only the output or only its picture exists, that one is its `existing`.

    Raises UsageError for an impossible combination and for a format that cannot be written here, OutputError for a name
    that exists (without `force`) or that `Places` refuses, and for a folder that cannot be created.
    """
    speakers = {request.speaker for request in asked}
    if [*speakers, *(request.input for request in asked)].count("-") > 1:
        raise UsageError("standard input (-) can be only one of the inputs")
    for request in asked:
        if request.output is None and out_dir is None:
            raise UsageError("name the output: either -o FILE or --out-dir FOLDER")
        if request.output == "-" and len(asked) * request.num_samples > 1:
            raise UsageError("only one sample can go to standard output")
    names = Template("--name", name, asked[0].suffixes) if name is not None else None
    if names and os.sep in names.text:
        raise UsageError("--name: names files in the folder of --out-dir, not folders")
    if names and "index" not in names.fields and any(request.num_samples > 1 for request in asked):
        raise UsageError("--name: needs {index} to tell several samples apart")
    pictures = _pictures(asked)
    planned = []
    for position, request in enumerate(asked):
        drawn = pictures.get(request.plot)
        for sample in range(request.num_samples):
            place = (request.input, sample, position)
            target = _target(request, place, out_dir, names)
            planned.append(PlannedOutput(request, position, sample, target, drawn.fill(*place) if drawn else None))
    check_formats(planned)
    if out_dir is not None and any(request.output is None for request in asked):
        _make_folder(out_dir)
    read = {path: "an input" for request in asked for path in (request.input, request.speaker) if path is not None}
    return _left(planned, Places([*read.items(), *reads]), force, skip_existing)


def check_formats(planned: Sequence[PlannedOutput], rate: int | None = None) -> None:
    """Raises UsageError if libsndfile cannot write the format of an output, or not at `rate` Hz."""
    suffixes = {Path(output.target).suffix.lower() for output in planned}
    for suffix in sorted(suffixes & files.FORMATS.keys()):
        files.check_format(suffix, rate)


def _pictures(asked: Sequence[Request]) -> dict[str | None, Template]:
    """The templates of pictures, by their text; raises UsageError if one would give several pictures the same name."""
    wanted = Counter[str]()
    for request in asked:
        if request.plot is not None:
            wanted[request.plot] += request.num_samples
    found: dict[str | None, Template] = {}
    for text, count in wanted.items():
        found[text] = picture = Template("--plot", text, PICTURES)
        several = any(request.num_samples > 1 for request in asked if request.plot == text)
        if (count > 1 and not picture.fields) or (several and "index" not in picture.fields):
            raise UsageError("--plot: several outputs need several names, such as '{stem}.{index}.png'")
    return found


def _target(request: Request, place: tuple[str | None, int, int], out_dir: str | None, names: Template | None) -> str:
    several, suffixes = request.num_samples > 1, request.suffixes
    if request.output == "-":
        return "-"
    if request.output is None:
        names = names or Template("--name", ("{stem}.{index}" if several else "{stem}") + suffixes[0], suffixes)
        target = os.path.join(str(out_dir), names.fill(*place))
    elif several:
        root, suffix = os.path.splitext(request.output)
        target = f"{root}.{place[1]}{suffix}"
    else:
        target = request.output
    if Path(target).suffix.lower() not in suffixes:
        raise UsageError(f"{display(target)}: the name must end in {listed(suffixes)}")
    return target


def _left(planned: list[PlannedOutput], places: Places, force: bool, skip_existing: bool) -> list[PlannedOutput]:
    """The outputs that remain to be made."""
    left = []
    for output in planned:
        source = output.request.input
        what = f"sample {output.sample}" if source is None else display(source)
        written = [] if output.target == "-" else [(output.target, what)]
        if output.picture is not None:
            written.append((output.picture, f"the picture of {what}"))
        there = [path for path, what in written if places.take(path, what)]
        if there and not (force or skip_existing):
            raise OutputError(
                f"{display(there[0])}: exists already; use --force to replace it, --skip-existing to keep it"
            )
        if force or not there:
            left.append(output)
        elif output.picture is not None and len(there) == 1:
            left.append(replace(output, existing=there[0]))
    return left


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"{display(folder)}: not a folder") from None
    except OSError as error:
        raise OutputError(f"{display(folder)}: cannot be made: {error.strerror}") from None
