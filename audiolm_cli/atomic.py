"""Writes output files atomically: a file is complete or not there, and nothing that is there is lost."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil

from audiolm_cli.console import write_stdout
from audiolm_cli.errors import ExistsError, OutputError, display


def write(target: str | os.PathLike[str], data: bytes, force: bool = False) -> None:
    """Writes a file atomically, through a temporary one beside it: `target` is complete or untouched.

    "-" is standard output. Without `force` an existing file is never replaced, not even one that appears meanwhile;
    with `force`, the new file gets its permissions. Raises ExistsError if it exists, OutputError if it is no regular
    file or cannot be written.
    """
    if os.fspath(target) == "-":
        write_stdout(data)
        return
    path = os.path.realpath(target)  # a symbolic link remains one
    part = os.path.join(os.path.dirname(path), f".audiolm-{secrets.token_hex(6)}.tmp")
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OutputError(f"{display(target)}: not a regular file")
        try:
            replaced = force and os.path.exists(path)
            _write_new(part, data, 0o600 if replaced else 0o666)
            if replaced:
                _like(path, part)
            elif not force:
                _reserve(part, path)
            os.replace(part, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
    except FileExistsError:
        raise ExistsError(f"{display(target)}: exists already; use --force to replace it") from None
    except OSError as error:
        raise OutputError(f"{display(target)}: cannot be written: {error.strerror}") from None


def _like(path: str, part: str) -> None:
    """Gives `part` the owner, mode and access list of the file at `path`, as far as the system allows."""
    with contextlib.suppress(OSError, AttributeError):
        os.chown(part, os.stat(path).st_uid, os.stat(path).st_gid)
    with contextlib.suppress(OSError):
        shutil.copystat(path, part)
        os.utime(part)  # the time of writing


def _write_new(path: str, data: bytes, mode: int) -> None:
    """Writes a new file. Where the system supports it (Linux), it has no name until it is complete, so a killed process
    leaves no partial file behind."""
    folder, nameless = os.path.dirname(path), None
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the file system does not support it
            nameless = os.open(folder, os.O_TMPFILE | os.O_WRONLY, mode)
    own = functools.partial(os.open, mode=mode)
    with open(path, "xb", opener=own) if nameless is None else open(nameless, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # a full disk shows here, not after the move
        if nameless is not None:
            place = os.open(folder, os.O_RDONLY)  # with it, link() follows the symbolic link in /proc
            try:
                os.link(f"/proc/self/fd/{nameless}", path, src_dir_fd=place)
            finally:
                os.close(place)


def _reserve(part: str, path: str) -> None:
    """Creates `path`, as a link to `part` where possible; raises FileExistsError if it exists."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links on this file system
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
