"""What can be asked of one output, checked alike whether it comes from the command line or from a line of --jobs."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from audiolm_cli.errors import UsageError

MAX_SECONDS = 3600.0
MAX_CANDIDATES = 64  # of one output
MAX_THREADS = 256  # some thousands end the process: the system gives it no more
PICTURES = (".png",)  # their suffixes
Three = tuple[Any, Any, Any]  # semantic, coarse, fine


@dataclass(frozen=True)
class Options:
    """The fields are long option names; None where a command does not have them or leaves the choice to the bundle."""

    duration: float | None = None  # seconds of new audio
    prompt_seconds: float | None = None  # of the prompt's end, to go on from
    continuation_only: bool | None = None
    best_of: int | None = None  # candidates; None for one, which leaves no choice
    speaker: str | None = None  # path of a reference recording
    plot: str | None = None  # path of a picture, or its template
    quantizers: int | None = None
    seed: int = 0
    temperature: Three | None = None
    top_k: Three | None = None
    top_p: Three | None = None
    guidance: float | None = None
    no_watermark: bool | None = None


@dataclass(frozen=True)
class Request:
    """What a user asks for: outputs of one source, which is a path, "-" for standard input or None."""

    source: str | None
    output: str | None
    samples: int
    options: Options


def seconds(option: str, value: Any) -> float:
    number = _number(option, value, float)
    if not 0 < number <= MAX_SECONDS:
        raise UsageError(f"{option}: must be above 0 and at most {MAX_SECONDS:g} seconds, not {number:g}")
    return number


def whole(least: int, most: int) -> Callable[[str, Any], int]:
    """A check for whole numbers from `least` to `most`."""

    def check(option: str, value: Any) -> int:
        number = _number(option, value, int)
        if not least <= number <= most:
            raise UsageError(f"{option}: must be from {least} to {most}, not {number}")
        return number

    return check


def threads(least: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `least` to MAX_THREADS."""

    def read(text: str) -> int:
        try:
            return whole(least, MAX_THREADS)("it", text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix("it: ")) from None

    return read


def strength(option: str, value: Any) -> float:
    number = _number(option, value, float)
    if not 0 <= number <= 10:
        raise UsageError(f"{option}: must be from 0 to 10, not {number:g}")
    return number


def candidates(option: str, value: Any) -> int | None:
    """None for 1: outputs are the same as without the option, down to what their metadata say."""
    number = whole(1, MAX_CANDIDATES)(option, value)
    return number if number > 1 else None


def flag(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{option}: must be true or false")
    return value


def path(option: str, value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise UsageError(f"{option}: must be a path")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise UsageError(f"{option}: {value!a} has characters that no file's name has") from None
    return value


@dataclass(frozen=True)
class Template:
    """The name of a file, in which {stem} of the input, {index} of the sample and {position} in the list may stand.

    Raises UsageError for other fields, for what is no name, and for a suffix that is none of `suffixes`.
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
            if re.search(r"\d{4}|{", str(form)):  # a width of gigabytes
                raise UsageError(f"{self.option}: {{{field}:{form}}} is no format for a name")
        if Path(self.text).suffix.lower() not in self.suffixes:
            raise UsageError(f"{self.option}: must end in {' or '.join(self.suffixes)}")

    @property
    def fields(self) -> set[str]:
        return {field for _, field, _, _ in string.Formatter().parse(self.text) if field is not None}

    def fill(self, source: str | None, index: int, position: int) -> str:
        """The name for a sample of the source at that place in the list."""
        stem = {None: "generated", "-": "stdin"}.get(source) or Path(str(source)).stem
        try:
            name = self.text.format(stem=stem, index=index, position=position)
        except (ValueError, OverflowError) as error:
            raise UsageError(f"{self.option}: {error}") from None
        if name.count(os.sep) != self.text.count(os.sep):  # of an {index:c}
            raise UsageError(f"{self.option}: a field must not make folders")
        return path(self.option, name)


def picture(option: str, value: Any) -> str:
    if value == "-":
        raise UsageError(f"{option}: draws into a file, not to standard output")
    return Template(option, value, PICTURES).text


def for_stages(kind: type, valid: Callable[[Any], bool], must: str) -> Callable[[str, Any], Three]:
    """A check for one number for all three stages, or three of them, as a list or separated by commas."""

    def check(option: str, value: Any) -> Three:
        parts = value if isinstance(value, list) else value.split(",") if isinstance(value, str) else [value]
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
    """A number as JSON has it, or as text of the command line."""
    what = "a whole number" if kind is int else "a number"
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | str)
        or (kind is int and isinstance(value, float))
    ):
        raise UsageError(f"{option}: must be {what}, not {json.dumps(value)}")
    try:
        return kind(value)
    except (ValueError, OverflowError):
        raise UsageError(f"{option}: must be {what}, not {value!r}") from None


CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "duration": seconds,
    "prompt_seconds": seconds,
    "continuation_only": flag,
    "best_of": candidates,
    "speaker": path,
    "plot": picture,
    "quantizers": whole(1, 64),
    "seed": whole(0, 2**63 - 1),
    "temperature": for_stages(float, lambda t: 0 <= t < math.inf, "at least 0"),
    "top_k": for_stages(int, lambda k: 0 <= k < 2**31, "from 0 to 2147483647"),
    "top_p": for_stages(float, lambda p: 0 < p <= 1, "above 0 and at most 1"),
    "guidance": strength,
    "no_watermark": flag,
    "num_samples": whole(1, 10000),
    "input": path,
    "output": path,
    "out_dir": path,
    "name": path,
    "jobs": path,
    "model": path,
}
OWN = ("num_samples", *(field.name for field in fields(Options)))  # what is asked of an output, besides where it goes
assert set(OWN) < CHECKS.keys()


def checked(values: dict[str, Any]) -> dict[str, Any]:
    """The values by their names, each as it must be; those that are None stay so. Raises UsageError."""
    return {
        name: None if value is None else CHECKS[name](f"--{name.replace('_', '-')}", value)
        for name, value in values.items()
    }


def read_jobs(
    lines: Iterable[bytes], where: str, keys: Iterable[str], defaults: dict[str, Any], takes_input: bool
) -> list[Request]:
    """The requests of a job list: one JSON object a line, `defaults` for what it leaves out; blank lines do not count.

    `keys` are what the command knows, of the names in `CHECKS`; a line has them with hyphens. Raises UsageError with
    the line's number.
    """
    allowed, requests = {key.replace("_", "-") for key in keys}, []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            given = json.loads(line)
            if not isinstance(given, dict):
                raise UsageError("not a JSON object")
            if unknown := given.keys() - allowed:
                raise UsageError(f"unknown key {sorted(unknown)[0]!r}; known are {', '.join(sorted(allowed))}")
            if takes_input and "input" not in given:
                raise UsageError("the key 'input' is missing")
            for key in (key for key, value in given.items() if value is None):
                raise UsageError(f"{key}: must not be null; leave the key out")
            requests.append(request({**defaults, **checked({k.replace("-", "_"): v for k, v in given.items()})}))
        except UnicodeDecodeError:
            raise UsageError(f"{where}:{number}: not UTF-8") from None
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}:{number}: not JSON ({error})") from None
        except UsageError as error:
            raise UsageError(f"{where}:{number}: {re.sub('^--', '', str(error))}") from None
    if not requests:
        raise UsageError(f"{where}: no jobs in it")
    return requests


def request(values: dict[str, Any]) -> Request:
    """A request from checked values."""
    rest = dict(values)
    source, output, samples = rest.pop("input", None), rest.pop("output", None), rest.pop("num_samples", None) or 1
    return Request(source, output, samples, Options(**rest))
