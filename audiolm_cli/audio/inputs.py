"""Opens inputs: a path, or standard input. Sizes are bounded, and devices are refused since they may never end."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

from audiolm_cli.errors import InputError, display

MAX_BYTES = 2**30  # of a recording from a pipe, copied to a temporary file
MAX_TEXT_BYTES = 2**28  # of files read into memory: tokens, job lists
CHUNK = 2**20


def check(source: str | os.PathLike[str]) -> None:
    """Raises InputError if `source` cannot be opened for reading; reads nothing."""
    if os.fspath(source) != "-" and not stat.S_ISFIFO(_mode(source)):  # a pipe can be opened only once
        with _stream(source):
            pass


@contextlib.contextmanager
def opened(source: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """The source as an unbuffered, seekable file with a descriptor, at its beginning.

    A pipe is first read to its end into a nameless temporary file, which is never left behind. Raises InputError if the
    source cannot be read, is a directory or a device, or if a pipe holds more than MAX_BYTES.
    """
    with _stream(source) as file:
        if os.fspath(source) != "-" and stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            yield file
            return
        with contextlib.ExitStack() as stack:
            try:
                copy = stack.enter_context(tempfile.TemporaryFile(buffering=0))
                for chunk in _chunks(file, display(source), MAX_BYTES):
                    copy.write(chunk)
                copy.seek(0)
            except OSError as error:
                raise InputError(
                    f"{display(source)}: cannot be kept in a temporary file: {error.strerror}; "
                    "TMPDIR names another folder for it"
                ) from None
            yield copy


def read_bytes(source: str | os.PathLike[str]) -> bytes:
    """The bytes of a token file or job list, or of standard input for "-"; raises InputError."""
    with _stream(source) as file:
        return b"".join(_chunks(file, display(source), MAX_TEXT_BYTES))


def _mode(source: str | os.PathLike[str]) -> int:
    """The mode of the file `source`, following links; 0 if there is none."""
    try:
        return os.stat(source).st_mode
    except (OSError, ValueError):
        return 0  # opening it reports why


@contextlib.contextmanager
def _stream(source: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    name = display(source)
    if os.fspath(source) == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise InputError("standard input: nothing is piped into it")
        with contextlib.suppress(io.UnsupportedOperation):  # in a library user's process it may be no file
            _refuse_device(os.fstat(sys.stdin.fileno()).st_mode, name)
        yield sys.stdin.buffer
        return
    _refuse_device(_mode(source), name)  # before opening, which can rewind a tape or wait for a terminal
    try:
        file = open(source, "rb", buffering=0)  # libsndfile shares the descriptor and its position
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{name}: a directory, not a recording") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    with file:
        yield file


def _refuse_device(mode: int, name: str) -> None:
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise InputError(f"{name}: a device, not a recording")


def _chunks(file: IO[bytes], name: str, most: int) -> Iterator[bytes]:
    """The rest of the file, piece by piece: one read of a pipe may return only part of it."""
    total = 0
    while chunk := _read(file, name):
        total += len(chunk)
        if total > most:
            raise InputError(f"{name}: larger than {most >> 20} MB")
        yield chunk


def _read(file: IO[bytes], name: str) -> bytes:
    try:
        return file.read(CHUNK)
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
