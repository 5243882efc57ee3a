"""What each command does with one job: read the input, run the pipeline, write a marked output."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from audiolm_cli import __version__, audio
from audiolm_cli.console import Console, Progress
from audiolm_cli.errors import InputError, UsageError, display
from audiolm_cli.jobs import Job

if TYPE_CHECKING:
    from audiolm_cli.bundle import Bundle
    from audiolm_cli.pipeline import Output, Prompt, Sampling, Tokens

GENERATED = "trainedAlgorithmicMedia"  # IPTC digital source type: made by a model trained on media


@dataclass
class Continue:
    """`audiolm continue`: job -> Prompt -> Output -> an audio file."""

    bundle: Bundle
    console: Console
    duration: float  # new seconds
    prompt_seconds: float  # how much of the prompt's end conditions them
    seed: int
    sampling: Sampling
    batch_size: int
    continuation_only: bool
    settings: dict[str, Any]  # device, dtype and threads, for the record
    force: bool

    def __post_init__(self) -> None:
        tokens = self.bundle.config.tokens
        self.rate, frame = tokens.sample_rate, tokens.samples_per_semantic
        for option, seconds in (("--duration", self.duration), ("--prompt-seconds", self.prompt_seconds)):
            if round(seconds * self.rate) < frame:
                raise UsageError(f"{option}: must be at least {frame / self.rate} seconds")
        self.seconds = self.duration
        self._recording: tuple[Job, np.ndarray] | None = None  # read once for all its samples
        self._batch = 1  # outputs made together

    def load(self, job: Job) -> Prompt:
        from audiolm_cli.pipeline import Prompt

        if self._recording is None or self._recording[0].position != job.position:
            self._recording = job, _read(job, self.bundle, self.console)
        return Prompt(self._recording[1], job.position, job.sample)

    def work(self, inputs: list[Prompt], progress: Progress | None) -> Iterator[Output]:
        from audiolm_cli import pipeline

        self._batch = len(inputs)
        return pipeline.continue_(
            self.bundle,
            inputs,
            duration=self.duration,
            prompt_seconds=self.prompt_seconds,
            seed=self.seed,
            sampling=self.sampling,
            batch_size=self.batch_size,
            progress=progress,
        )

    def save(self, job: Job, result: Output) -> dict[str, Any]:
        kept = 0 if self.continuation_only else result.prompt_samples
        samples = result.samples[result.prompt_samples - kept :]
        options = {
            "duration": self.duration,
            "prompt_seconds": self.prompt_seconds,
            "temperature": self.sampling.temperature,
            "top_k": self.sampling.top_k,
            "top_p": self.sampling.top_p,
            "batch_size": self.batch_size,
            "position": job.position,
            "sample": job.sample,
            **self.settings,
        }
        tags = _tags(self.bundle, seed=self.seed, prompt_samples=kept, options=options)
        clipped = audio.write(job.target, samples, self.rate, tags, self.force)
        new = len(result.samples) - result.prompt_samples
        factor = sum(result.stage_seconds.values()) * self.rate / (new * self._batch)  # the seconds are the batch's
        self.console.note(f"{_output(job.target)}: {new / self.rate:g} s of new audio, real-time factor {factor:.2f}")
        if clipped:
            self.console.note(f"{_output(job.target)}: {clipped} samples beyond full scale clipped")
        return {
            **_record(job, self.bundle),
            "seed": self.seed,
            "position": job.position,
            "sample": job.sample,
            "prompt_seconds": kept / self.rate,
            "new_seconds": new / self.rate,
            "seconds": len(samples) / self.rate,
            "batch": self._batch,
            "stages": {
                stage: {
                    "seconds": seconds,
                    "tokens": tokens,
                    "tokens_per_second": tokens / seconds if seconds else None,
                }
                for stage, seconds in result.stage_seconds.items()
                for tokens in (result.stage_tokens.get(stage, 0),)
            },
            "real_time_factor": factor,
            "peak": _peak(samples),
            "clipped": clipped,
        }


@dataclass
class Encode:
    """`audiolm encode`: job -> samples -> Tokens -> a safetensors file."""

    bundle: Bundle
    console: Console
    force: bool
    batch_size: int = 1
    seconds: float = 0

    def load(self, job: Job) -> np.ndarray:
        return _read(job, self.bundle, self.console)

    def work(self, inputs: list[np.ndarray], progress: Progress | None) -> Iterator[tuple[Tokens, int]]:
        from audiolm_cli import pipeline

        for samples in inputs:
            yield pipeline.encode(self.bundle, samples), len(samples)

    def save(self, job: Job, result: tuple[Tokens, int]) -> dict[str, Any]:
        tokens, samples = result
        audio.write_bytes(job.target, tokens.save_bytes(), self.force)
        return {**_record(job, self.bundle), "seconds": samples / self.bundle.config.tokens.sample_rate}


@dataclass
class Decode:
    """`audiolm decode`: job -> Tokens -> samples -> an audio file."""

    bundle: Bundle
    console: Console
    quantizers: int | None  # None: all
    force: bool
    batch_size: int = 1
    seconds: float = 0

    def __post_init__(self) -> None:
        most = self.bundle.config.tokens.quantizers
        if self.quantizers is not None and self.quantizers > most:
            raise UsageError(f"--quantizers: {self.bundle.config.name} has only {most}")

    def load(self, job: Job) -> Tokens:
        from audiolm_cli.pipeline import Tokens

        data = audio.read_bytes(job.source)
        try:
            return Tokens.load_bytes(data, self.bundle)
        except InputError as error:
            raise InputError(f"{display(job.source)}: {error}") from None

    def work(self, inputs: list[Tokens], progress: Progress | None) -> Iterator[np.ndarray]:
        from audiolm_cli import pipeline

        for tokens in inputs:
            yield pipeline.decode(self.bundle, tokens, self.quantizers)

    def save(self, job: Job, result: np.ndarray) -> dict[str, Any]:
        rate = self.bundle.config.tokens.sample_rate
        quantizers = self.quantizers or self.bundle.config.tokens.quantizers
        tags = _tags(self.bundle, options={"quantizers": quantizers})
        clipped = audio.write(job.target, result, rate, tags, self.force)
        if clipped:
            self.console.note(f"{_output(job.target)}: {clipped} samples beyond full scale clipped")
        return {
            **_record(job, self.bundle),
            "quantizers": quantizers,
            "seconds": len(result) / rate,
            "peak": _peak(result),
            "clipped": clipped,
        }


def _read(job: Job, bundle: Bundle, console: Console) -> np.ndarray:
    """The job's recording as float32 [T] at the bundle's rate, at least one token long; says what was done to it."""
    tokens = bundle.config.tokens
    recording = audio.read(job.source, tokens.sample_rate)
    for note in recording.notes:
        console.note(f"{display(job.source)}: {note}")
    if len(recording.samples) < tokens.samples_per_semantic:
        milliseconds = 1000 * tokens.samples_per_semantic / tokens.sample_rate
        raise InputError(f"{display(job.source)}: shorter than one token, {milliseconds:g} ms")
    return recording.samples


def _tags(bundle: Bundle, **made_with: Any) -> dict[str, str]:
    """Metadata that says what made an audio file; the comment is ASCII JSON, well under 1 kB."""
    comment = {"bundle": bundle.config.name[:64], "identity": bundle.identity, **made_with}
    return {
        "software": f"audiolm {__version__}",
        "comment": json.dumps({**comment, "digitalSourceType": GENERATED}, separators=(",", ":")),
    }


def _record(job: Job, bundle: Bundle) -> dict[str, Any]:
    return {"path": job.target, "source": job.source, "model": bundle.config.name, "identity": bundle.identity}


def _output(target: str) -> str:
    return "standard output" if target == "-" else display(target)


def _peak(samples: np.ndarray) -> float:
    return float(np.abs(samples).max(initial=0))
