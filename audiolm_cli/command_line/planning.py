"""Every file that a run writes is named and checked here, before a model loads: nothing that is there is lost.

`plan` names outputs and pictures. `Places` decides about each name: it must be no file that the run reads or writes
elsewhere, whatever it is called there, and it must be possible.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from audiolm_cli.command_line import options
from audiolm_cli.command_line.jobs import Job
from audiolm_cli.command_line.options import Request, Template
from audiolm_cli.errors import OutputError, UsageError, display

Identity = tuple[int, int]  # device and inode: the same for all names of a file


class Places:
    """The files that a run reads and, one after the other, those that it writes.

    `reads` are pairs of a path, or "-" for standard input, and what that is to the run: "an input", "the job list".
    Raises OutputError where standard output goes into one of them.
    """

    def __init__(self, reads: Iterable[tuple[str, str]]):
        self._read: dict[str | Identity, str] = {}  # real paths and identities
        self._taken: dict[tuple[Identity, str], dict[str, str]] = defaultdict(dict)  # folder, folded name: name: what
        self._folders: dict[str, Identity] = {}
        for path, what in reads:
            if path != "-":
                self._read[os.path.realpath(path)] = what
            if file := _identity(0 if path == "-" else path):
                self._read[file] = what
        self._stdout = _identity(1)
        if self._stdout in self._read:
            raise OutputError(f"standard output: is {self._read[self._stdout]} itself and would be lost")

    def take(self, path: str, what: str) -> bool:
        """Takes a path for what is to be written, given in words, and returns whether there is a file already.

        Raises UsageError for what names no file, and OutputError for a file that the run reads, that is taken, a
        bundle's, or no regular one, and for a folder or a name that cannot be.
        """
        name, real = display(path), os.path.realpath(path)
        if os.path.basename(path) in ("", os.curdir, os.pardir):
            raise UsageError(f"{name}: names a folder, not a file")
        there = _status(real, name)
        for file in (real, there and (there.st_dev, there.st_ino)):
            if file in self._read:
                raise OutputError(f"{name}: is {self._read[file]} itself and would be lost")
            if file and file == self._stdout:
                raise OutputError(f"{name}: is standard output, too")
        if there and stat.S_ISDIR(there.st_mode):
            raise OutputError(f"{name}: is a folder; use --out-dir")
        if there and not stat.S_ISREG(there.st_mode):
            raise OutputError(f"{name}: not a regular file")
        folder, base = os.path.split(real)
        if folder not in self._folders:
            self._folders[folder] = _usable(folder, name, os.path.dirname(path))
        alike = self._taken[self._folders[folder], unicodedata.normalize("NFKD", base.casefold())]
        for other, before in alike.items():
            if other == base or _one_file(folder, other, base):
                raise OutputError(f"{name}: {before} and {what} would both be written there")
        alike[base] = what
        return there is not None


def plan(
    requests: Sequence[Request],
    *,
    out_dir: str | None,
    suffixes: Sequence[str],
    reads: Iterable[tuple[str, str]] = (),
    name: str | None = None,
    force: bool = False,
    skip_existing: bool = False,
) -> list[Job]:
    """The jobs that make what is asked for, in its order.

    An output a.wav with several samples means a.0.wav, a.1.wav, ...; in `out_dir`, which is made if need be, x.flac
    becomes x.wav, or x.0.wav and so on, or what the template `name` says ({stem}, {index}, {position}). Pictures are
    named by such templates, too. `suffixes` are the formats that a name may end in; the first is that of `out_dir`.
    `reads` is what `Places` must know besides the inputs. `skip_existing` leaves out what is there; where an output is
    there without its picture, or a picture without its output, that is the job's `kept`.

    Raises UsageError for a combination that cannot be, OutputError for a name that exists (without `force`) or that
    `Places` refuses, and for a folder that cannot be made.
    """
    speakers = {request.options.speaker for request in requests}
    if [*speakers, *(request.source for request in requests)].count("-") > 1:
        raise UsageError("standard input (-) can be only one of the inputs")
    for request in requests:
        if request.output is None and out_dir is None:
            raise UsageError("name the output: either -o FILE or --out-dir FOLDER")
        if request.output == "-" and len(requests) * request.samples > 1:
            raise UsageError("only one sample can go to standard output")
    names = Template("--name", name, suffixes) if name is not None else None
    if names and os.sep in names.text:
        raise UsageError("--name: names files in the folder of --out-dir, not folders")
    if names and "index" not in names.fields and any(request.samples > 1 for request in requests):
        raise UsageError("--name: needs {index} to tell several samples apart")
    pictures = _pictures(requests)
    jobs = []
    for position, request in enumerate(requests):
        picture = pictures.get(request.options.plot)
        for sample in range(request.samples):
            place = (request.source, sample, position)
            own = replace(request.options, plot=picture.fill(*place)) if picture else request.options
            jobs.append(Job(request.source, position, sample, _target(request, place, out_dir, names, suffixes), own))
    if out_dir is not None and any(request.output is None for request in requests):
        _make_folder(out_dir)
    inputs = {path: "an input" for job in jobs for path in (job.source, job.options.speaker) if path is not None}
    return _left(jobs, Places([*inputs.items(), *reads]), force, skip_existing)


def _pictures(requests: Sequence[Request]) -> dict[str | None, Template]:
    """The templates of pictures, by their text; raises UsageError where one would name several pictures alike."""
    wanted = Counter[str]()
    for request in requests:
        if request.options.plot is not None:
            wanted[request.options.plot] += request.samples
    found: dict[str | None, Template] = {}
    for text, count in wanted.items():
        found[text] = picture = Template("--plot", text, options.PICTURES)
        several = any(request.samples > 1 for request in requests if request.options.plot == text)
        if (count > 1 and not picture.fields) or (several and "index" not in picture.fields):
            raise UsageError("--plot: several outputs need several names, such as '{stem}.{index}.png'")
    return found


def _target(
    request: Request,
    place: tuple[str | None, int, int],
    out_dir: str | None,
    names: Template | None,
    suffixes: Sequence[str],
) -> str:
    if request.output == "-":
        return "-"
    if request.output is None:
        several = request.samples > 1
        names = names or Template("--name", ("{stem}.{index}" if several else "{stem}") + suffixes[0], suffixes)
        target = os.path.join(str(out_dir), names.fill(*place))
    elif request.samples > 1:
        root, suffix = os.path.splitext(request.output)
        target = f"{root}.{place[1]}{suffix}"
    else:
        target = request.output
    if Path(target).suffix.lower() not in suffixes:
        raise UsageError(f"{display(target)}: the name must end in {' or '.join(suffixes)}")
    return target


def _left(jobs: list[Job], places: Places, force: bool, skip_existing: bool) -> list[Job]:
    """The jobs that are left to do."""
    left = []
    for job in jobs:
        what = f"sample {job.sample}" if job.source is None else display(job.source)
        files = [] if job.target == "-" else [(job.target, what)]
        if job.options.plot is not None:
            files.append((job.options.plot, f"the picture of {what}"))
        there = [path for path, what in files if places.take(path, what)]
        if there and not (force or skip_existing):
            raise OutputError(
                f"{display(there[0])}: exists already; use --force to replace it, --skip-existing to keep it"
            )
        if force or not there:
            left.append(job)
        elif job.options.plot is not None and len(there) == 1:
            left.append(replace(job, kept=there[0]))
    return left


def _make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"{display(folder)}: not a folder") from None
    except OSError as error:
        raise OutputError(f"{display(folder)}: cannot be made: {error.strerror}") from None


def _identity(file: str | int) -> Identity | None:
    """Of a regular file, by its path or descriptor; None for all else."""
    with contextlib.suppress(OSError):
        status = os.stat(file)
        if stat.S_ISREG(status.st_mode):
            return status.st_dev, status.st_ino
    return None


def _status(path: str, name: str) -> os.stat_result | None:
    """Of what is at a path, None where nothing is; raises OutputError where nothing can be: the system knows which
    names are too long."""
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(f"{name}: cannot be written: {error.strerror}") from None


def _usable(folder: str, name: str, given: str) -> Identity:
    """A folder's identity; raises OutputError where the file `name` cannot be in it. Users call the folder `given`."""
    if not os.path.isdir(folder):
        raise OutputError(f"{name}: there is no folder {display(given or folder)}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{name}: the folder cannot be written to")
    at = Path(folder)
    bundle = (at / "config.json").is_file() and (at / "SHA256SUMS").is_file()
    if bundle or (at.name == "blobs" and (at.parent / "snapshots").is_dir()):  # where a hub's cache has the files
        raise OutputError(f"{name}: is in the folder of a bundle, where nothing else belongs")
    status = at.stat()
    return status.st_dev, status.st_ino


def _one_file(folder: str, first: str, second: str) -> bool:
    """Whether the folder's file system takes two names for one, as some do that differ in case or composition only."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(prefix=".audiolm-", dir=folder) as trial:
        Path(trial, first).touch()
        return os.path.lexists(os.path.join(trial, second))
    return False
