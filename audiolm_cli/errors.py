"""Errors that a user can cause: each is one clear line and an exit code."""

from __future__ import annotations

import os


class AudioLMError(Exception):
    """Base of all errors that the command line prints without a traceback."""

    exit_code = 1


class UsageError(AudioLMError):
    """A command that cannot be right whatever the files contain: a bad value, an absent device."""

    exit_code = 2


class InputError(AudioLMError):
    """An input that is missing, unreadable, not audio or not usable."""


class TooLongError(InputError):
    """A recording that lasts longer than is allowed."""


class OutputError(AudioLMError):
    """An output that exists already, clashes with another or cannot be written."""


class ExistsError(OutputError):
    """An output that exists already, and is kept."""


class ModelError(AudioLMError):
    """A bundle that is unknown, damaged or inconsistent."""


def explain(error: Exception) -> tuple[int, str]:
    """The exit code and a one-line message for an error of any class."""
    if isinstance(error, AudioLMError):
        return error.exit_code, str(error)
    if hasattr(error, "format_message"):  # Typer's own, about the command's arguments
        return getattr(error, "exit_code", 2), " ".join(error.format_message().split())
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return 1, "out of memory; a smaller --batch-size or a shorter --duration needs less"
    text = " ".join(str(error).split())
    return 1, f"unexpected {type(error).__name__}: {text} (--debug shows where)"


def display(path: str | os.PathLike[str]) -> str:
    """An input's name in messages: its path, printable, or "standard input" for "-"."""
    name = os.fspath(path)
    return "standard input" if name == "-" else name if name.isprintable() else ascii(name)
