"""Opening what is named as an input: a path, or standard input; bounded, and never a device that has no end."""

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

MAX_BYTES = 2**30  # of a recording from a pipe, which is kept in a temporary file
MAX_TEXT_BYTES = 2**28  # of what is read into memory as a whole: tokens, job lists
CHUNK = 2**20


def check(source: str | os.PathLike[str]) -> None:
    """Raises InputError when `source` cannot be opened for reading; costs no reading."""
    if os.fspath(source) != "-" and not stat.S_ISFIFO(_mode(source)):  # a pipe can be opened only once
        with _stream(source):
            pass


@contextlib.contextmanager
def opened(source: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """The source as an unbuffered file with a descriptor, at its beginning, in which one can search.

    A pipe is read to its end first, into a temporary file that has no name and so never stays behind. Raises
    InputError when the source cannot be read, is a directory or a device, or when a pipe holds more than MAX_BYTES.
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
    """The bytes of a file of tokens or of a job list, or of standard input for "-"; raises InputError."""
    with _stream(source) as file:
        return b"".join(_chunks(file, display(source), MAX_TEXT_BYTES))


def _mode(source: str | os.PathLike[str]) -> int:
    """The kind of file that `source` is, links followed; 0 where there is none."""
    try:
        return os.stat(source).st_mode
    except (OSError, ValueError):
        return 0  # opening it says why


@contextlib.contextmanager
def _stream(source: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    name = display(source)
    if os.fspath(source) == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise InputError("standard input: nothing is piped into it")
        with contextlib.suppress(io.UnsupportedOperation):  # where the program is used as a library, it may be no file
            _refuse_device(os.fstat(sys.stdin.fileno()).st_mode, name)
        yield sys.stdin.buffer
        return
    _refuse_device(_mode(source), name)  # before it is opened, which can rewind a tape or wait for a terminal
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
    """What is left in the file, piece by piece: one read of a pipe may return a small part of it."""
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
