"""Parses requests: options from the query, form fields or a JSON object, sounds from the body or a form.

Options have the names and checks of the command line's; options that name files are refused.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import MISSING, dataclass, field
from typing import IO, Any, TypeVar

import anyio
import numpy as np
from anyio import to_thread
from starlette.datastructures import UploadFile
from starlette.requests import Request as Http

from audiolm_cli import checks
from audiolm_cli.audio import files
from audiolm_cli.audio.encoding import FORMATS, check_format
from audiolm_cli.audio.files import Recording
from audiolm_cli.backend import Settings
from audiolm_cli.config import TokenSpec
from audiolm_cli.errors import UsageError
from audiolm_cli.request import Request
from audiolm_cli.server.guard import RefusedError
from audiolm_cli.server.work import BusyError

SOUNDS = ("audio", "speaker")  # a form's files
RAW = ("audio/", "video/", "application/octet-stream", "application/ogg")  # media types of sound as the body
FIELDS, FIELD_BYTES = 64, 4096  # of a form
OPTION_BYTES = FIELDS * FIELD_BYTES  # of a JSON object
DECODING, WAITING = 2, 16  # uploads that are decoded at a time, and that may wait for it

Kind = TypeVar("Kind", bound=Request)


@dataclass
class Asked:
    """A request's options by name, and its uploaded sounds: unbuffered, nameless open files."""

    options: dict[str, Any] = field(default_factory=dict)
    sounds: dict[str, IO[bytes]] = field(default_factory=dict)

    def option(self, name: str, value: Any) -> None:
        if name in self.options:
            raise UsageError(f"{name[:100]}: is given twice")
        self.options[name] = value


@contextlib.asynccontextmanager
async def asked(http: Http, sounds: Iterable[str]) -> AsyncIterator[Asked]:
    """Parses a request with any of the `sounds`; the body itself may be the first of them."""
    found, allowed = Asked(), tuple(sounds)
    for option in http.query_params.multi_items():
        found.option(*option)
    media = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    async with contextlib.AsyncExitStack() as stack:
        if media == "multipart/form-data":
            form = http.form(max_files=len(SOUNDS), max_fields=FIELDS, max_part_size=FIELD_BYTES)
            for name, value in (await stack.enter_async_context(form)).multi_items():
                if isinstance(value, UploadFile):
                    if name not in allowed or name in found.sounds:
                        why = "is given twice" if name in allowed else "no file of that name is expected"
                        raise UsageError(f"{name[:100]}: {why}")
                    found.sounds[name] = stack.enter_context(_unbuffered(value))
                else:
                    found.option(name, value)
        elif allowed and (media.startswith(RAW) or not media):
            file = stack.enter_context(tempfile.TemporaryFile(buffering=0))
            size = 0
            async for data in http.stream():
                size += len(data)
                await to_thread.run_sync(file.write, data)
            if size:
                found.sounds[allowed[0]] = file
        elif media == "application/json" and not allowed:
            for option in _object(await _options(http)).items():
                found.option(*option)
        else:
            accepted = "audio/*, application/octet-stream or multipart/form-data" if allowed else "application/json"
            async for data in http.stream():
                if data:
                    raise RefusedError(415, f"a body of {media[:100]!a} is not accepted; send {accepted}")
        yield found


def _unbuffered(upload: UploadFile) -> IO[bytes]:
    spooled: Any = upload.file
    spooled.rollover()  # to disk: decoding needs a file descriptor
    spooled.flush()
    return os.fdopen(os.dup(spooled.fileno()), "rb", buffering=0)


async def _options(http: Http) -> bytes:
    """The body, which holds nothing but options. Raises RefusedError."""
    found = b""
    async for data in http.stream():
        found += data
        if len(found) > OPTION_BYTES:
            raise RefusedError(413, f"options take {OPTION_BYTES >> 10} kB at most")
    return found


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data) if data else {}
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is not JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, dict):
        raise UsageError("the body is not a JSON object")
    return found


def known(kind: type[Request]) -> dict[str, Any]:
    """The options open to clients, by name."""
    return {name.replace("_", "-"): spec for name, spec in kind.options_in_memory().items()}


def options_for(kind: type[Request], config: Settings) -> list[str]:
    """The options that a model serves, `format` included."""
    return sorted({*known(kind), "format"} - (set() if config.knows_pauses else {"max-pause"}))


def defaults_for(kind: type[Request], config: Settings) -> dict[str, Any]:
    """The defaults of these options, the command's or the model's; those without one are left out."""
    pause = config.pause_limit if math.isfinite(config.pause_limit) else None
    own = {**vars(config.sampling), "prompt_seconds": config.prompt_seconds, "max_pause": pause}
    found: dict[str, Any] = {"format": FORMATS[0]}
    for name, spec in known(kind).items():
        fixed = None if spec.default is MISSING else spec.default
        found[name] = own.get(spec.name) if fixed is None else fixed
    return {name: found[name] for name in options_for(kind, config) if found[name] is not None}


def request(kind: type[Kind], options: dict[str, Any], most: float) -> Kind:
    """A request with these options, for `most` seconds at most. Raises UsageError."""
    specs, values = known(kind), dict[str, Any]()
    for name, value in options.items():
        if name not in specs:
            choice = ", ".join(sorted([*specs, "format"]))
            raise UsageError(f"{ascii(name[:100])[1:-1]}: not an option here; there are {choice}")
        if specs[name].metadata["check"] is checks.flag and isinstance(value, str):
            value = {"": True, "true": True, "false": False}.get(value.lower(), value)
        values[name] = value
    made = kind().updated(values)
    if (duration := getattr(made, "duration", 0)) > most:
        raise UsageError(f"duration: at most {most:g} seconds here, not {duration:g}")
    return made


def format_of(options: dict[str, Any], rate: int) -> str:
    """Removes the response's format from the options and returns it. Raises UsageError."""
    format: str = check_format("format", options.pop("format", "wav"))
    if format != "s16le":
        files.check_format(f".{format}", rate)
    return format


class Reader:
    """Decodes uploads of up to `most` seconds in threads, DECODING at a time, with the limits of files."""

    def __init__(self, most: float):
        self.most, self.limiter = most, anyio.CapacityLimiter(DECODING)

    async def read(self, file: IO[bytes], name: str, rate: int) -> Recording:
        """Decodes an upload. Raises InputError, TooLongError beyond `most` seconds, and BusyError."""
        if self.limiter.statistics().tasks_waiting >= WAITING:
            raise BusyError
        work: Callable[[], Recording] = lambda: files.read_file(file, name, rate, most=self.most)  # noqa: E731
        return await to_thread.run_sync(work, limiter=self.limiter)

    async def samples(self, asked: Asked, name: str, spec: TokenSpec) -> np.ndarray:
        """An uploaded sound as `float32 [T]`, at least one semantic token long."""
        samples = (await self.read(asked.sounds[name], name, spec.sample_rate)).samples
        spec.require_token(len(samples), f"{name}: ")
        return samples
