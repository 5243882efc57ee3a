"""The output of a request, and its three response formats: sound, a stream of JSON lines, one JSON object."""

from __future__ import annotations

import base64
import functools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from audiolm_cli import pipeline
from audiolm_cli.audio import files
from audiolm_cli.audio.encoding import Encoder, wav_header
from audiolm_cli.backend import Backend
from audiolm_cli.provenance import provenance
from audiolm_cli.request import ContinueRequest, GenerateRequest, ResynthRequest
from audiolm_cli.server.work import Job

Sampled = ContinueRequest | GenerateRequest | ResynthRequest


@dataclass(frozen=True)
class Piece:
    """Watermarked sound `float32 [T]`, and tokens `int64 [S]`, `int64 [Q, F]`, which are ahead of it."""

    waveform: np.ndarray
    semantic: Tensor
    codes: Tensor


class Output:
    """The output of a request for `sound`, the prompt or source, in the voice of `speaker`; both `float32 [T]`. `about`
    is its record once the first piece is ready, `summary` the rest of the record at the end."""

    def __init__(
        self, bundle: Backend, request: Sampled, sound: np.ndarray | None = None, speaker: np.ndarray | None = None
    ) -> None:
        self.bundle, self.request, self.sound, self.speaker = bundle, request, sound, speaker
        self.rate, self.summary = bundle.config.tokens.sample_rate, dict[str, Any]()
        extent = request.extent(0 if sound is None else len(sound), self.rate)
        self.kept, self.samples = extent.kept, extent.total
        self.origin = provenance.Origin(bundle, request, extent.prompt)
        self.about: dict[str, Any] = {
            "model": bundle.config.name,
            "identity": bundle.identity,
            "seed": request.seed,
            "sample_rate": self.rate,
            "samples": None if self.samples == math.inf else self.samples,
            "prompt_samples": self.kept,
            "watermark_bits": self.origin.bits,
        }

    def pieces(self, job: Job) -> Iterator[Piece]:
        """The sound as the command line makes it, to the last bit."""
        stream: pipeline.Stream | None = None

        def pause(*_: object) -> None:
            seconds = job.pause()
            if seconds and stream is not None:
                stream.leave_out(seconds)

        stream = pipeline.stream(
            self.bundle, self.request, pipeline.Prompt() if self.sound is None else pipeline.Prompt(self.sound),
            speaker=self.speaker, progress=pause,
        )  # fmt: skip
        try:
            marking = self.origin.marking()
            chunk = None
            for chunk in stream:
                if "surprise" not in self.about:
                    made = stream.output([chunk])
                    self.about |= {
                        "tokens_start": made.tokens_start - made.prompt_samples + self.kept,
                        "surprise": made.surprise,
                        "unfamiliar": bool(made.unfamiliar),
                        "unfamiliar_reason": made.unfamiliar or None,
                        "candidates": list(made.candidates) or None,
                    }
                yield Piece(marking.push(chunk.waveform), chunk.semantic, chunk.codes)
            assert chunk is not None
            yield Piece(marking.finish(), chunk.semantic[:0], chunk.codes[:, :0])
            made = stream.output([chunk])
            self.summary = {
                "stages": {
                    name: {"seconds": seconds, "tokens": made.stage_tokens.get(name, 0)}
                    for name, seconds in made.stage_seconds.items()
                }
            }
        finally:
            stream = None  # breaks its reference cycle with `pause`, so that it is freed at once


Answer = Callable[[Output, Job], Iterator[bytes]]


def sound(output: Output, job: Job, format: str) -> Iterator[bytes]:
    """Streams a file of that format."""
    written: list[bytes] = []
    encoder = None
    for piece in output.pieces(job):
        if encoder is None:  # not before the first piece: a failure to make it must become an error response
            encoder = Encoder(written.append, output.rate, format, output.origin.tags, output.samples)
        encoder.push(piece.waveform)
        yield from _taken(written)
    assert encoder is not None
    encoder.finish()
    yield from _taken(written)


def json_lines(output: Output, job: Job) -> Iterator[bytes]:
    """Streams JSON lines: `about` first, then 16-bit samples and tokens, then `summary`."""
    first = True
    for piece in output.pieces(job):
        if first:
            header = wav_header(output.rate, output.origin.tags, output.samples)
            yield _line({**output.about, "wav_header": base64.b64encode(header).decode()})
            first = False
        samples = base64.b64encode(files.pcm16(piece.waveform).astype("<i2").tobytes()).decode()
        yield _line({"s16le": samples, "semantic": piece.semantic.tolist(), "codes": piece.codes.tolist()})
    yield _line({"done": True, **output.summary})


def json_object(output: Output, job: Job) -> Iterator[bytes]:
    """One JSON object: the record, the tokens, and the sound as a WAV file in base64."""
    pieces = list(output.pieces(job))
    waveform = np.concatenate([piece.waveform for piece in pieces])
    data, _ = files.encode(waveform, output.rate, ".wav", output.origin.tags)
    codes = [np.asarray(piece.codes) for piece in pieces]
    yield _line({
        **output.about,
        "samples": len(waveform),
        **output.summary,
        "semantic": [int(token) for piece in pieces for token in piece.semantic],
        "codes": np.concatenate(codes, 1).tolist(),
        "wav": base64.b64encode(data).decode(),
    })  # fmt: skip


MEDIA_TYPES = {"wav": "audio/wav", "flac": "audio/flac", "ogg": "audio/ogg", "opus": "audio/ogg"}
LINES, OBJECT = "application/x-ndjson", "application/json"


def answer(accept: str, format: str) -> tuple[Answer, str]:
    """The response format for an Accept header, and its media type."""
    types = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    if LINES in types:
        return json_lines, LINES
    if OBJECT in types:
        return json_object, OBJECT
    return functools.partial(sound, format=format), MEDIA_TYPES.get(format, "application/octet-stream")


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


def _taken(written: list[bytes]) -> Iterator[bytes]:
    data = b"".join(written)
    written.clear()
    if data:
        yield data
