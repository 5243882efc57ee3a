"""The program from Python: a loaded model that continues, generates, resynthesises, encodes, decodes and detects.

    import audiolm_cli

    model = audiolm_cli.load("speech")
    result = model.continue_(waveform, 16000, duration=7, seed=1)
    result.save("out.wav")

A sound is a path, or an array or tensor `[T]` or `[channels, T]` of floats in [-1, 1] or signed integers with its
sample rate. Outputs are `float32 [T]` at the bundle's rate, with the watermark. Options have the names of the command
line's. Errors are those of `audiolm_cli.errors`; nothing is printed. Several threads may share a model: they take
turns, in streams chunk by chunk.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audiolm_cli import models, pipeline
from audiolm_cli.audio import files
from audiolm_cli.audio.files import MAX_RATE, MAX_SECONDS, MIN_RATE, Recording
from audiolm_cli.backend import Backend
from audiolm_cli.bundles.bundle import Bundle
from audiolm_cli.errors import InputError, UsageError
from audiolm_cli.pipeline import Prompt
from audiolm_cli.provenance import provenance, watermark
from audiolm_cli.request import ContinueRequest, DecodeRequest, GenerateRequest, ResynthRequest
from audiolm_cli.token_file import Tokens

Sound = np.ndarray | Tensor | str | os.PathLike[str]
Request = ContinueRequest | GenerateRequest | ResynthRequest


def load(
    name: str = "speech", *, device: str = "auto", dtype: str = "auto", threads: int | None = None,
    offline: bool = False,
) -> Model:  # fmt: skip
    """Loads a bundle or a public checkpoint by its name, folder, or `org/repo@revision` on a hub. `threads` is set for
    the whole process's torch; the command line uses 1. Raises ModelError, UsageError."""
    if threads is not None:
        torch.set_num_threads(threads)
    return Model(models.load(name, device=device, dtype=dtype, offline=offline))


def detect(sound: Sound, sample_rate: int | None = None, *, model: str | None = None) -> dict[str, Any]:
    """Tells whether audiolm made a sound; returns the record of `audiolm detect --json` (docs/files.md). The classifier
    is that of the bundle `model`; by default, of the bundle whose watermark is found, else of `speech`."""
    return provenance.Examiner(model).examine(_recording(sound, sample_rate, watermark.RATE), _named(sound))


@dataclass(frozen=True)
class Audio:
    """Audio, `waveform` `float32 [T]` at `sample_rate` Hz, and the metadata `tags` for a file of it."""

    waveform: np.ndarray
    sample_rate: int
    tags: dict[str, str] = field(default_factory=dict, repr=False)

    def save(self, path: str | os.PathLike[str], force: bool = False) -> None:
        """Writes a .wav, .flac, .ogg, .opus or .mp3 file, by the suffix of `path`, with its metadata. Raises
        ExistsError if the file exists, unless `force`; OutputError, UsageError."""
        suffix = os.path.splitext(os.fspath(path))[1].lower()
        if suffix not in files.FORMATS:
            raise UsageError(f"{path}: the name must end in {', '.join(files.FORMATS)}")
        files.check_format(suffix, self.sample_rate)
        files.write(path, self.waveform, self.sample_rate, self.tags, force)


@dataclass(frozen=True)
class Result(Audio):
    """An output. Its first `prompt_samples` are the prompt's. semantic, codes: the tokens from sample `tokens_start`
    on, `int64 [S]` and `int64 [Q, F]`. stage_seconds, stage_tokens, surprise, unfamiliar, candidates: as in
    `pipeline.Output`."""

    seed: int = 0
    semantic: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64), repr=False)
    codes: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64), repr=False)
    prompt_samples: int = 0
    tokens_start: int = 0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    stage_tokens: dict[str, int] = field(default_factory=dict)
    surprise: float | None = None
    unfamiliar: str = ""
    candidates: tuple[float, ...] = ()


class Model:
    """A loaded bundle, or a loaded public checkpoint, which only continues and generates."""

    def __init__(self, bundle: Backend):
        self.bundle, self.sample_rate = bundle, bundle.config.tokens.sample_rate
        self._lock = threading.RLock()

    def continue_(self, sound: Sound, sample_rate: int | None = None, **options: Any) -> Result:
        """Continues a sound for `duration` seconds (default 7). Options: duration, prompt_seconds, best_of, until_end,
        max_pause, continuation_only, seed (random by default), temperature, top_k, top_p, guidance, prompt_guidance,
        no_watermark."""
        return self._whole(_request(ContinueRequest, options), self._samples(sound, sample_rate))

    def generate(self, **options: Any) -> Result:
        """Generates `duration` seconds (default 10) without a prompt. Options: duration, until_end, max_pause, seed,
        temperature, top_k, top_p, guidance, prompt_guidance, no_watermark."""
        return self._whole(_request(GenerateRequest, options))

    def resynth(
        self, sound: Sound, sample_rate: int | None = None, *, speaker: Sound | None = None,
        speaker_rate: int | None = None, **options: Any,
    ) -> Result:  # fmt: skip
        """Resynthesises a sound in the voice of the reference recording `speaker`, by default in a sampled voice.
        Options: seed, temperature, top_k, top_p, guidance, no_watermark."""
        reference = self._reference(speaker, speaker_rate, sample_rate)
        return self._whole(_request(ResynthRequest, options), self._samples(sound, sample_rate), reference)

    def stream(
        self, sound: Sound | None = None, sample_rate: int | None = None, *, resynth: bool = False,
        speaker: Sound | None = None, speaker_rate: int | None = None, **options: Any,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """Yields the samples of `continue_`, to the last bit, in chunks `float32 [T]` as soon as they are final; with
        `resynth` those of `resynth`, without a sound those of `generate`. `duration` may be `math.inf`."""
        request_class = GenerateRequest if sound is None else ResynthRequest if resynth else ContinueRequest
        request = _request(request_class, options)
        reference = self._reference(speaker, speaker_rate, sample_rate) if resynth else None
        samples = None if sound is None else self._samples(sound, sample_rate)
        with self._lock:
            chunks = iter(self._stream(request, samples, reference))
        return self._marked(request, 0 if resynth or samples is None else len(samples), chunks)

    def _marked(self, request: Request, prompt: int, chunks: Iterator[pipeline.Chunk]) -> Iterator[np.ndarray]:
        marking = provenance.Origin(self.bundle, request, prompt).marking()
        while True:
            with self._lock:
                chunk = next(chunks, None)
                samples = marking.finish() if chunk is None else marking.push(chunk.waveform)
            if len(samples):
                yield samples
            if chunk is None:
                return

    def encode(self, sound: Sound, sample_rate: int | None = None) -> Tokens:
        """Encodes a sound as tokens: `.semantic` `int64 [S]`, `.codes` `int64 [Q, F]`."""
        bundle, samples = self._stages("encode"), self._samples(sound, sample_rate)
        with self._lock:
            return pipeline.encode(bundle, samples)

    def decode(self, tokens: Tokens, quantizers: int | None = None) -> Audio:
        """Decodes the codes of tokens, those of the first `quantizers` (default: all)."""
        bundle = self._stages("decode")
        DecodeRequest(quantizers=quantizers).check(bundle.config)
        with self._lock:
            samples = pipeline.decode(bundle, tokens, quantizers)
        used = quantizers or bundle.config.tokens.quantizers
        return Audio(samples, self.sample_rate, provenance.tags(bundle, options={"quantizers": used}))

    def detect(self, sound: Sound, sample_rate: int | None = None) -> dict[str, Any]:
        """The function `detect` with this bundle's classifier."""
        bundle, recording = self._stages("detect"), _recording(sound, sample_rate, watermark.RATE)
        with self._lock:
            return provenance.examine(recording, _named(sound), lambda maker: bundle)

    def _stages(self, command: str) -> Bundle:
        """The bundle, for a command that needs one. Raises UsageError if the model is a public checkpoint."""
        if not isinstance(self.bundle, Bundle):
            raise models.refusal(command, self.bundle.config.name)
        return self.bundle

    def _stream(self, request: Request, samples: np.ndarray | None, reference: np.ndarray | None) -> pipeline.Stream:
        bundle = self._stages("resynth") if isinstance(request, ResynthRequest) else self.bundle
        prompt = Prompt() if samples is None else Prompt(samples)
        return pipeline.stream(bundle, request, prompt, speaker=reference)

    def _whole(
        self, request: Request, samples: np.ndarray | None = None, reference: np.ndarray | None = None
    ) -> Result:
        pipeline.require_end(request)
        with self._lock:
            stream = self._stream(request, samples, reference)
            made = stream.output(list(stream))
        origin = provenance.Origin(self.bundle, request, made.prompt_samples)
        return Result(
            *(origin.marked(made.waveform), self.sample_rate, origin.tags, request.seed),
            semantic=made.semantic,
            codes=made.codes,
            prompt_samples=origin.kept,
            tokens_start=made.tokens_start - made.prompt_samples + origin.kept,
            stage_seconds=made.stage_seconds,
            stage_tokens=made.stage_tokens,
            surprise=made.surprise,
            unfamiliar=made.unfamiliar,
            candidates=made.candidates,
        )

    def _samples(self, sound: Sound, sample_rate: int | None) -> np.ndarray:
        samples = _recording(sound, sample_rate, self.sample_rate).samples
        self.bundle.config.tokens.require_token(len(samples))
        return samples

    def _reference(self, speaker: Sound | None, rate: int | None, default: int | None) -> np.ndarray | None:
        return None if speaker is None else self._samples(speaker, rate or default)


def _request(request_class: type[Request], options: dict[str, Any]) -> Request:
    """A request with these options. Raises UsageError for an unknown one."""
    known = request_class.options_in_memory().keys()
    if unknown := options.keys() - known:
        names = ", ".join(sorted(known))
        raise UsageError(f"{sorted(unknown)[0]}: not an option here; there are {names}; files are for the command line")
    return request_class(**{name: value for name, value in options.items() if value is not None})


def _named(sound: Sound) -> str | None:
    return os.fspath(sound) if isinstance(sound, str | os.PathLike) else None


def _recording(sound: Sound, sample_rate: int | None, rate: int) -> Recording:
    """A sound as mono at `rate` Hz. Raises InputError, UsageError."""
    if isinstance(sound, str | os.PathLike):
        return files.read(sound, rate)
    if isinstance(sound, Tensor):
        sound = sound.detach().cpu().float().numpy() if sound.is_floating_point() else sound.detach().cpu().numpy()
    if not isinstance(sound, np.ndarray) or sound.dtype.kind not in "fi" or sound.ndim not in (1, 2):
        raise UsageError("a sound is an array or tensor [T] or [channels, T] of floats or integers, or a path")
    if sample_rate is None or not MIN_RATE <= sample_rate <= MAX_RATE:
        raise UsageError(f"sample_rate: must be from {MIN_RATE} to {MAX_RATE} Hz, not {sample_rate}")
    full = float(np.iinfo(sound.dtype).max) + 1 if sound.dtype.kind == "i" else 1.0
    samples = (sound if sound.ndim == 1 else sound.mean(0)).astype(np.float32) / np.float32(full)
    if not len(samples):
        raise InputError("there is no audio in it")
    if len(samples) > MAX_SECONDS * sample_rate:
        raise InputError(f"longer than {MAX_SECONDS // 60} minutes; cut it first")
    if not np.isfinite(samples).all():
        raise InputError("has NaN or infinite samples")
    return Recording(files.resampled(samples.clip(-1, 1), int(sample_rate), rate), rate)
