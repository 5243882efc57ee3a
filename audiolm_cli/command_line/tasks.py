"""What each command does with one job: read the input, run the pipeline, write a marked output."""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile

from audiolm_cli.audio import files, inputs, postfilter
from audiolm_cli.command_line import plot
from audiolm_cli.command_line.jobs import Job, Task
from audiolm_cli.command_line.options import Options
from audiolm_cli.console import Console, Progress
from audiolm_cli.errors import InputError, OutputError, UsageError, display
from audiolm_cli.provenance import provenance, watermark

if TYPE_CHECKING:
    from audiolm_cli.bundles.bundle import Bundle
    from audiolm_cli.pipeline import Output, Prompt, Tokens


@dataclass(frozen=True)
class TaskSpec:
    """What a task is made of, to make it here or in another process. Fields are named as the command's options."""

    kind: str  # the name of a class below
    model: str
    device: str
    threads: int
    offline: bool
    force: bool
    skip_existing: bool
    dtype: str | None = None  # None, as `batch_size`, where nothing is sampled
    batch_size: int | None = None

    def task(self, console: Console) -> Task:
        """The task with its bundle loaded; raises ModelError, UsageError."""
        import torch

        from audiolm_cli.bundles import bundle

        torch.set_num_threads(self.threads)
        loaded = bundle.load(self.model, device=self.device, dtype=self.dtype or "float32", offline=self.offline)
        common: dict[str, Any] = {"force": self.force, "skip_existing": self.skip_existing}
        if self.dtype is not None:
            settings = {
                "device": self.device,
                "dtype": self.dtype,
                "threads": self.threads,
                "kernel": loaded.kernel,
            }
            if loaded.kernel == "torch" and loaded.device.type == "cpu" and not os.environ.get("AUDIOLM_KERNEL"):
                console.note("the native kernel is not compiled here: decoding by torch, which takes far longer")
            common |= {"batch_size": self.batch_size, "settings": settings}
        kinds = {kind.__name__: kind for kind in (Continue, Generate, Resynth, Encode, Decode)}
        task: Task = kinds[self.kind](loaded, console, **common)
        return task


@dataclass
class Synthesis(ABC):
    """What the commands that sample have in common: job -> Prompt -> Output -> an audio file."""

    bundle: Bundle
    console: Console
    batch_size: int
    settings: dict[str, Any]  # device, dtype, threads and kernel, for the record
    force: bool
    skip_existing: bool

    def __post_init__(self) -> None:
        tokens = self.bundle.config.tokens
        self.rate, self.token = tokens.sample_rate, tokens.samples_per_semantic
        # read once for all samples of a recording, and beside it the reference that many share
        self._read = functools.lru_cache(2)(lambda path: _read(path, self.bundle, self.console))
        self._read_end = functools.lru_cache(2)(lambda path: _read(path, self.bundle, self.console, end_only=True))
        self._batch = 1  # outputs made together
        self._mark = watermark.bundle_id(self.bundle.config.name)

    def check(self, options: Options) -> None:
        for option, seconds in (("--duration", options.duration), ("--prompt-seconds", options.prompt_seconds)):
            if seconds is not None and round(seconds * self.rate) < self.token:
                raise UsageError(f"{option}: must be at least {self.token / self.rate} seconds")

    def load(self, job: Job) -> Prompt:
        from audiolm_cli.pipeline import Prompt

        if job.source is None:
            return Prompt(np.zeros(0, np.float32), job.position, job.sample, job.options.seed)
        read = self._read_end if job.options.continuation_only else self._read
        return Prompt(read(job.source), job.position, job.sample, job.options.seed)

    def seconds(self, job: Job, loaded: Prompt) -> float:
        return job.options.duration or len(loaded.samples) / self.rate

    def complete(self, options: Options) -> Options:
        """The options with what the bundle says where they say nothing."""
        return options

    def work(self, jobs: list[Job], loaded: list[Prompt], progress: Progress | None) -> Iterator[Output]:
        from audiolm_cli.pipeline import Sampling

        options, defaults, self._batch = jobs[0].options, self.bundle.config.sampling, len(jobs)
        given = {name: getattr(options, name) for name in vars(defaults)}
        self._sampling = vars(defaults) | {name: value for name, value in given.items() if value is not None}
        sampling = Sampling(**self._sampling)
        return self.make(
            loaded, self.complete(options), sampling=sampling, batch_size=self.batch_size, progress=progress
        )

    @abstractmethod
    def make(self, prompts: list[Prompt], options: Options, **common: Any) -> Iterator[Output]:
        """Runs the pipeline."""

    def save(self, job: Job, result: Output) -> dict[str, Any]:
        options = {name: value for name, value in asdict(self.complete(job.options)).items() if value is not None}
        picture = options.pop("plot", None)
        seed = options.pop("seed")
        if "speaker" in options:
            options["speaker"] = os.path.basename(options["speaker"])[-80:]  # a comment has room for 2,000 characters
        kept = 0 if options.pop("continuation_only", False) else result.prompt_samples
        samples, bits = result.samples, None
        if not options.pop("no_watermark", False):
            samples = watermark.embed(samples, self.rate, self._mark, result.prompt_samples)
            bits = watermark.bits(self._mark)
        samples = samples[result.prompt_samples - kept :]
        made_with = {
            **options,
            **self._sampling,
            "batch_size": self.batch_size,
            "position": job.position,
            "sample": job.sample,
            **self.settings,
        }
        config = self.bundle.config
        if result.unfamiliar and not job.sample:  # once for all samples of a prompt
            self.console.note(
                f"{display(str(job.source))}: unlike what the bundle {config.name} was trained on "
                f"({result.unfamiliar}); expect little of it"
            )
        tags = provenance.tags(self.bundle, seed=seed, prompt_samples=kept, watermark=bits or False, options=made_with)
        drawn = None
        if picture:
            drawn = plot.png(result, config.tokens, f"{_output(job.target)}, {config.name}, seed {seed}")
            _check_kept(job, tags, drawn)
        clipped = 0
        if job.kept != job.target:
            clipped = files.write(job.target, samples, self.rate, tags, self.force)
        if drawn and job.kept != picture:
            files.write_bytes(picture, drawn, self.force)
        new = len(result.samples) - result.prompt_samples
        factor = sum(result.stage_seconds.values()) * self.rate / (new * self._batch)  # the seconds are the batch's
        self.console.note(f"{_output(job.target)}: {new / self.rate:g} s of new audio, real-time factor {factor:.2f}")
        if clipped:
            self.console.note(f"{_output(job.target)}: {clipped} samples beyond full scale clipped")
        return {
            **_record(job, self.bundle),
            "seed": seed,
            "position": job.position,
            "sample": job.sample,
            "watermark_bits": bits,
            "prompt_seconds": kept / self.rate,
            "new_seconds": new / self.rate,
            "seconds": len(samples) / self.rate,
            "batch": self._batch,
            "kernel": self.settings["kernel"],
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
            "surprise": result.surprise,
            "unfamiliar": bool(result.unfamiliar),
            "candidates": list(result.candidates) or None,
            "candidate": result.candidates.index(max(result.candidates)) if result.candidates else None,
        }


class Continue(Synthesis):
    """`audiolm continue`."""

    def complete(self, options: Options) -> Options:
        return replace(options, prompt_seconds=options.prompt_seconds or self.bundle.config.prompt_seconds)

    def make(self, prompts: list[Prompt], options: Options, **common: Any) -> Iterator[Output]:
        from audiolm_cli import pipeline

        asked: Any = {"duration": options.duration, "prompt_seconds": options.prompt_seconds}
        return pipeline.continue_(self.bundle, prompts, **asked, best_of=options.best_of or 1, **common)


class Generate(Synthesis):
    """`audiolm generate`."""

    def make(self, prompts: list[Prompt], options: Options, **common: Any) -> Iterator[Output]:
        from audiolm_cli import pipeline

        return pipeline.generate(self.bundle, prompts, duration=options.duration or 0, **common)


class Resynth(Synthesis):
    """`audiolm resynth`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._silent = functools.lru_cache(2)(lambda path: postfilter.silent(self._read(path), self.rate))

    def load(self, job: Job) -> Prompt:
        if job.options.speaker and self._silent(job.options.speaker):  # here it fails this job only
            raise InputError(f"{display(job.options.speaker)}: is silent: there is no voice in it")
        return super().load(job)

    def make(self, prompts: list[Prompt], options: Options, **common: Any) -> Iterator[Output]:
        from audiolm_cli import pipeline

        speaker = self._read(options.speaker) if options.speaker else None
        return pipeline.resynth(self.bundle, prompts, speaker=speaker, **common)


@dataclass
class Encode:
    """`audiolm encode`: job -> samples -> Tokens -> a safetensors file."""

    bundle: Bundle
    console: Console
    force: bool
    skip_existing: bool
    batch_size: int = 1

    def check(self, options: Options) -> None:
        pass

    def load(self, job: Job) -> np.ndarray:
        return _read(str(job.source), self.bundle, self.console)

    def seconds(self, job: Job, loaded: np.ndarray) -> float:
        return len(loaded) / self.bundle.config.tokens.sample_rate

    def work(
        self, jobs: list[Job], loaded: list[np.ndarray], progress: Progress | None
    ) -> Iterator[tuple[Tokens, int]]:
        from audiolm_cli import pipeline

        for samples in loaded:
            yield pipeline.encode(self.bundle, samples, progress), len(samples)

    def save(self, job: Job, result: tuple[Tokens, int]) -> dict[str, Any]:
        tokens, samples = result
        files.write_bytes(job.target, tokens.save_bytes(), self.force)
        return {**_record(job, self.bundle), "seconds": samples / self.bundle.config.tokens.sample_rate}


@dataclass
class Decode:
    """`audiolm decode`: job -> Tokens -> samples -> an audio file."""

    bundle: Bundle
    console: Console
    force: bool
    skip_existing: bool
    batch_size: int = 1

    def check(self, options: Options) -> None:
        most = self.bundle.config.tokens.quantizers
        if (options.quantizers or 1) > most:
            raise UsageError(f"--quantizers: {self.bundle.config.name} has only {most}")

    def load(self, job: Job) -> Tokens:
        from audiolm_cli.pipeline import Tokens

        source = str(job.source)
        data = inputs.read_bytes(source)
        try:
            return Tokens.load_bytes(data, self.bundle)
        except InputError as error:
            raise InputError(f"{display(source)}: {error}") from None

    def seconds(self, job: Job, loaded: Tokens) -> float:
        return 0

    def work(self, jobs: list[Job], loaded: list[Tokens], progress: Progress | None) -> Iterator[np.ndarray]:
        from audiolm_cli import pipeline

        for job, tokens in zip(jobs, loaded, strict=True):
            yield pipeline.decode(self.bundle, tokens, job.options.quantizers, progress)

    def save(self, job: Job, result: np.ndarray) -> dict[str, Any]:
        rate = self.bundle.config.tokens.sample_rate
        quantizers = job.options.quantizers or self.bundle.config.tokens.quantizers
        tags = provenance.tags(self.bundle, options={"quantizers": quantizers})
        clipped = files.write(job.target, result, rate, tags, self.force)
        if clipped:
            self.console.note(f"{_output(job.target)}: {clipped} samples beyond full scale clipped")
        return {
            **_record(job, self.bundle),
            "quantizers": quantizers,
            "seconds": len(result) / rate,
            "peak": _peak(result),
            "clipped": clipped,
        }


def _read(path: str, bundle: Bundle, console: Console, end_only: bool = False) -> np.ndarray:
    """A recording, or the last hour of it, as float32 [T] at the bundle's rate, at least one token long; says what was
    done to it."""
    tokens = bundle.config.tokens
    recording = files.read(path, tokens.sample_rate, end_only)
    for note in recording.notes:
        console.note(f"{display(path)}: {note}")
    if len(recording.samples) < tokens.samples_per_semantic:
        milliseconds = 1000 * tokens.samples_per_semantic / tokens.sample_rate
        raise InputError(f"{display(path)}: shorter than one token, {milliseconds:g} ms")
    return recording.samples


def _record(job: Job, bundle: Bundle) -> dict[str, Any]:
    return {"path": job.target, "source": job.source, "model": bundle.config.name, "identity": bundle.identity}


def _check_kept(job: Job, tags: dict[str, str], picture: bytes) -> None:
    """Raises OutputError where an output that is there without its picture, or the other way round, was made with
    another seed or other options."""
    if job.kept is None:
        return
    if job.kept == job.target:
        try:
            with soundfile.SoundFile(job.target) as sound:
                same = sound.copy_metadata().get("comment") == tags["comment"]
        except soundfile.LibsndfileError:
            same = False
    else:
        with open(job.kept, "rb") as file:
            same = file.read() == picture
    if not same:
        raise OutputError(f"{display(job.kept)}: exists already, made in another way; use --force to make both anew")


def _output(target: str) -> str:
    return "standard output" if target == "-" else display(target)


def _peak(samples: np.ndarray) -> float:
    return float(np.abs(samples).max(initial=0))
