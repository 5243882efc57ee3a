"""What a run may write: protects its inputs, existing files and bundles."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from audiolm_cli.errors import OutputError, UsageError, display

Identity = tuple[int, int]  # device and inode: the same for all names of a file


class Places:
    """The files that a run reads and those that it will write.

    `reads` are pairs of a path, or "-" for standard input, and its role in the run: "an input", "the job list". Raises
    OutputError if standard output is redirected into one of them.
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
        """Reserves a path for an output, described by `what`, and returns whether a file exists there.

        Raises UsageError for a path that names no file, and OutputError for one that the run reads, that is taken, in
        a bundle, or no regular file, and for an unusable folder or name.
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


def _identity(file: str | int) -> Identity | None:
    """A regular file's identity, by its path or descriptor; None for anything else."""
    with contextlib.suppress(OSError):
        status = os.stat(file)
        if stat.S_ISREG(status.st_mode):
            return status.st_dev, status.st_ino
    return None


def _status(path: str, name: str) -> os.stat_result | None:
    """The status of what is at a path, None if nothing is; raises OutputError if nothing can be, as for names that the
    system finds too long."""
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(f"{name}: cannot be written: {error.strerror}") from None


def _usable(folder: str, name: str, given: str) -> Identity:
    """A folder's identity; raises OutputError if the file `name` cannot be in it. Users call the folder `given`."""
    if not os.path.isdir(folder):
        raise OutputError(f"{name}: there is no folder {display(given or folder)}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{name}: the folder cannot be written to")
    at = Path(folder)
    bundle = (at / "config.json").is_file() and (at / "SHA256SUMS").is_file()
    if bundle or (at.name == "blobs" and (at.parent / "snapshots").is_dir()):  # where a hub's cache stores files
        raise OutputError(f"{name}: is in the folder of a bundle, where nothing else belongs")
    status = at.stat()
    return status.st_dev, status.st_ino


def _one_file(folder: str, first: str, second: str) -> bool:
    """Whether the file system treats two names as one, as some do with names that differ in case or normalisation."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(prefix=".audiolm-", dir=folder) as trial:
        Path(trial, first).touch()
        return os.path.lexists(os.path.join(trial, second))
    return False
