"""Checks of single values from the command line, a job list or Python.

Each takes an option's name and a value, and returns the value in its final type; an invalid one raises a `UsageError`
that begins with the name.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audiolm_cli.errors import UsageError

MAX_SECONDS = 3600.0
MAX_MINUTES = 7 * 24 * 60.0  # of a training
MAX_THREADS = 256  # thousands would crash the process: the system refuses that many
PICTURES = (".png",)  # suffixes

Check = Callable[[str, Any], Any]


def seconds(option: str, value: Any) -> float:
    number = _number(option, value, float)
    if not 0 < number <= MAX_SECONDS:
        raise UsageError(f"{option}: must be above 0 and at most {MAX_SECONDS:g} seconds, not {number:g}")
    return float(number)


def minutes(option: str, value: Any) -> float:
    number = _number(option, value, float)
    if not 0 < number <= MAX_MINUTES:
        raise UsageError(f"{option}: must be above 0 and at most {MAX_MINUTES:g} minutes, not {number:g}")
    return float(number)


def duration(option: str, value: Any) -> float:
    """Seconds, or `inf`."""
    return math.inf if value in ("inf", math.inf) else seconds(option, value)


def integer(least: int, most: int) -> Callable[[str, Any], int]:
    """A check for integers from `least` to `most`."""

    def check(option: str, value: Any) -> int:
        number = _number(option, value, int)
        if not least <= number <= most:
            raise UsageError(f"{option}: must be from {least} to {most}, not {number}")
        return int(number)

    return check


def threads(least: int) -> Callable[[str], int]:
    """A type for argparse: integers from `least` to MAX_THREADS."""

    def read(text: str) -> int:
        try:
            return integer(least, MAX_THREADS)("it", text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("it: ")) from None

    return read


def guidance(option: str, value: Any) -> float:
    number = _number(option, value, float)
    if not 0 <= number <= 10:
        raise UsageError(f"{option}: must be from 0 to 10, not {number:g}")
    return float(number)


def flag(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{option}: must be true or false")
    return value


def path(option: str, value: Any) -> str:
    value = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(value, str) or not value or "\0" in value:
        raise UsageError(f"{option}: must be a path")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise UsageError(f"{option}: {value!a} has characters that no file's name has") from None
    return value


def source(option: str, value: Any) -> str:
    """A path to read from; an empty one counts as a missing file, which is reported on reading."""
    return "" if value == "" else path(option, value)


@dataclass(frozen=True)
class Template:
    """A file name that may contain {stem} of the input, {index} of the sample and {position} in the list.

    Raises UsageError for other fields, for an invalid name, and for a suffix not in `suffixes`.
    """

    option: str
    text: str
    suffixes: Sequence[str]

    def __post_init__(self) -> None:
        path(self.option, self.text)
        try:
            parsed = [part[1:] for part in string.Formatter().parse(self.text) if part[1] is not None]
        except ValueError as error:
            raise UsageError(f"{self.option}: {error}") from None
        for field, form, _ in parsed:
            if field not in ("stem", "index", "position"):
                raise UsageError(f"{self.option}: knows {{stem}}, {{index}} and {{position}}, not {{{field}}}")
            if re.search(r"\d{4}|{", str(form)):  # no widths of gigabytes
                raise UsageError(f"{self.option}: {{{field}:{form}}} is no format for a name")
        if Path(self.text).suffix.lower() not in self.suffixes:
            raise UsageError(f"{self.option}: must end in {listed(self.suffixes)}")

    @property
    def fields(self) -> set[str]:
        return {field for _, field, _, _ in string.Formatter().parse(self.text) if field is not None}

    def fill(self, source: str | None, index: int, position: int) -> str:
        """The name for sample `index` of the source at `position` in the list."""
        stem = {None: "generated", "-": "stdin"}.get(source) or Path(str(source)).stem
        try:
            name = self.text.format(stem=stem, index=index, position=position)
        except (ValueError, OverflowError) as error:
            raise UsageError(f"{self.option}: {error}") from None
        if name.count(os.sep) != self.text.count(os.sep):  # as by {index:c}
            raise UsageError(f"{self.option}: a field must not make folders")
        return path(self.option, name)


def picture(option: str, value: Any) -> str:
    if value == "-":
        raise UsageError(f"{option}: draws into a file, not to standard output")
    return Template(option, path(option, value), PICTURES).text


def listed(names: Sequence[str]) -> str:
    """Names as a choice in words."""
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def for_stages(kind: type, valid: Callable[[Any], bool], must: str) -> Callable[[str, Any], tuple[Any, Any, Any]]:
    """A check for one number for all three stages, or three of them, as a list or comma-separated."""

    def check(option: str, value: Any) -> tuple[Any, Any, Any]:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
        try:
            values = [_number(option, part, kind) for part in parts]
        except UsageError:
            raise UsageError(f"{option}: {value!r} is neither one number nor three separated by commas") from None
        if len(values) not in (1, 3):
            raise UsageError(f"{option}: give one number or three separated by commas, not {len(values)}")
        if not all(valid(number) for number in values):
            raise UsageError(f"{option}: must be {must}, not {value}")
        semantic, coarse, fine = values * (3 // len(values))
        return semantic, coarse, fine

    return check


def _number(option: str, value: Any, kind: type) -> Any:
    """A number from JSON, Python or the command line's text."""
    what = "a whole number" if kind is int else "a number"
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | str)
        or (kind is int and isinstance(value, float))
    ):
        raise UsageError(f"{option}: must be {what}, not {json.dumps(value, default=repr)}")
    try:
        return kind(value)
    except (ValueError, OverflowError):
        raise UsageError(f"{option}: must be {what}, not {value!r}") from None
