"""One batch of planned outputs: reads the inputs, runs the pipeline, writes watermarked files, and reports them.

A `BatchRunner` holds a loaded bundle; there is one class for the commands that sample, one for `encode`, one for
`decode`.
"""

from __future__ import annotations

import functools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import numpy as np
import soundfile

from audiolm_cli import atomic
from audiolm_cli.audio import files, inputs, postfilter
from audiolm_cli.command_line import plot, streaming
from audiolm_cli.command_line.arguments import NO_STREAM, RunOptions, SamplingRunOptions
from audiolm_cli.command_line.planning import PlannedOutput
from audiolm_cli.console import Console, Progress
from audiolm_cli.errors import AudioLMError, ExistsError, InputError, OutputError, UsageError, display
from audiolm_cli.provenance import provenance
from audiolm_cli.provenance.provenance import Origin
from audiolm_cli.request import (
    ContinueRequest,
    DecodeRequest,
    EncodeRequest,
    GenerateRequest,
    Request,
    ResynthRequest,
    SampledRequest,
)

if TYPE_CHECKING:
    from audiolm_cli.backend import Backend
    from audiolm_cli.bundles.bundle import Bundle
    from audiolm_cli.pipeline import Output, Prompt
    from audiolm_cli.token_file import Tokens

COMMANDS = {ResynthRequest: "resynth", EncodeRequest: "encode", DecodeRequest: "decode"}  # that not every kind serves
Read = TypeVar("Read")
Made = TypeVar("Made")


def load_runner(kind: type[Request], run_options: RunOptions, console: Console) -> BatchRunner[Any, Any]:
    """Loads the bundle for requests of a class. Raises ModelError, and UsageError for what its kind cannot do."""
    from audiolm_cli import models

    models.require(COMMANDS.get(kind, "continue"), run_options.model, run_options.offline)
    import torch

    torch.set_num_threads(run_options.threads)
    dtype = run_options.dtype.value if isinstance(run_options, SamplingRunOptions) else "float32"
    loaded = models.load(
        run_options.model, device=run_options.device, dtype=dtype, offline=run_options.offline, say=console.hearer
    )
    runners: dict[type[Request], type[BatchRunner[Any, Any]]] = {
        EncodeRequest: EncodeRunner,
        DecodeRequest: DecodeRunner,
    }
    found = runners.get(kind, SamplingRunner)
    return found(loaded, run_options, console)


def read_recording(path: str, bundle: Backend, console: Console, end_only: bool = False) -> np.ndarray:
    """Reads a recording, or its last hour, as `float32 [T]` at the bundle's rate, and reports how it was changed.
    Raises InputError if it is shorter than one token."""
    spec = bundle.config.tokens
    recording = files.read(path, spec.sample_rate, end_only)
    for note in recording.notes:
        console.note(f"{display(path)}: {note}")
    spec.require_token(len(recording.samples), f"{display(path)}: ")
    return recording.samples


def read_tokens(path: str, bundle: Backend) -> Tokens:
    """Reads a token file. Raises InputError."""
    from audiolm_cli.token_file import Tokens

    data = inputs.read_bytes(path)
    try:
        return Tokens.load_bytes(data, bundle)
    except InputError as error:
        raise InputError(f"{display(path)}: {error}") from None


class BatchRunner(ABC, Generic[Read, Made]):
    """Makes batches of outputs whose requests differ only in input, seed and names."""

    batch_size = 1
    stream_options = NO_STREAM

    def __init__(self, bundle: Backend, run_options: RunOptions, console: Console):
        self.bundle, self.console = bundle, console
        self.rate = bundle.config.tokens.sample_rate
        self.force, self.skip_existing = run_options.force, run_options.skip_existing

    def check(self, request: Request) -> None:
        """Raises UsageError for options that the bundle cannot serve."""
        try:
            request.check(self.bundle.config)
        except UsageError as error:
            raise UsageError(f"--{error}") from None

    @abstractmethod
    def read(self, output: PlannedOutput) -> Read:
        """Reads the input; an AudioLMError fails this output only."""

    @abstractmethod
    def seconds(self, output: PlannedOutput, read: Read) -> float:
        """The length of the audio to make; 0 if that does not determine the time it takes."""

    @abstractmethod
    def make(self, batch: list[PlannedOutput], read: list[Read], progress: Progress | None) -> Iterator[Made]:
        """Turns up to `batch_size` inputs into results, in order."""

    @abstractmethod
    def write(self, output: PlannedOutput, made: Made) -> dict[str, Any]:
        """Writes the output and returns its record; an AudioLMError fails this output only."""

    def run(self, batch: list[PlannedOutput], fail_fast: bool = False) -> int:
        """Makes one batch, reports each output, and returns the number that failed. With `fail_fast`, makes nothing if
        an input fails."""
        ready = []
        for output in batch:
            try:
                source = output.request.input
                with self.console.status(f"reading {display(source)}" if source is not None else "starting"):
                    ready.append((output, self.read(output)))
            except AudioLMError as error:
                self.console.error(error)
        failed = len(batch) - len(ready)
        if not ready or (failed and fail_fast):
            return failed
        with self.console.progress(sum(self.seconds(output, read) for output, read in ready)) as progress:
            results = list(self.make([output for output, _ in ready], [read for _, read in ready], progress))
        for (output, _), made in zip(ready, results, strict=True):  # printed after the progress bars are gone
            try:
                with self.console.status("writing"):
                    record = self.write(output, made)
                self.console.result(record)
            except AudioLMError as error:
                if isinstance(error, ExistsError) and self.skip_existing:
                    self.console.note(f"{display(output.target)}: has come up meanwhile and is kept")
                    continue
                self.console.error(error)
                failed += 1
        return failed

    def recording(self, path: str, end_only: bool = False) -> np.ndarray:
        return read_recording(path, self.bundle, self.console, end_only)

    def warn_clipped(self, output: PlannedOutput, clipped: int) -> None:
        if clipped:
            self.console.note(f"{_named(output.target)}: {clipped} samples beyond full scale clipped")

    def record(self, output: PlannedOutput, **more: Any) -> dict[str, Any]:
        """The record of any output, with more fields."""
        of = {"model": self.bundle.config.name, "identity": self.bundle.identity}
        if self.bundle.revision:
            of["revision"] = self.bundle.revision
        return {"path": output.target, "source": output.request.input, **of, **more}


class SamplingRunner(BatchRunner["Prompt", "Output"]):
    """`continue`, `generate` and `resynth`: a prompt becomes an audio file."""

    def __init__(self, bundle: Backend, run_options: RunOptions, console: Console):
        super().__init__(bundle, run_options, console)
        assert isinstance(run_options, SamplingRunOptions)
        self.batch_size = run_options.batch_size
        self.settings = {  # for the record
            "device": run_options.device,
            "dtype": run_options.dtype.value,
            "threads": run_options.threads,
            "kernel": bundle.kernel,
            **({"revision": bundle.revision} if bundle.revision else {}),
        }
        if (
            bundle.kernel == "torch"
            and bundle.compiled
            and bundle.device.type == "cpu"
            and not os.environ.get("AUDIOLM_KERNEL")
        ):
            console.note("the native kernel is not compiled here: decoding by torch, which takes far longer")
        # cached: read once for all samples of a recording, like a reference that many share
        self._recording = functools.lru_cache(2)(self.recording)
        self._silent = functools.lru_cache(2)(lambda path: postfilter.silent(self._recording(path, False), self.rate))
        self._together = 1  # outputs in the batch

    def read(self, output: PlannedOutput) -> Prompt:
        from audiolm_cli.pipeline import Prompt

        request = cast(SampledRequest, output.request)
        if request.speaker and self._silent(request.speaker):  # here, an error fails only this output
            raise InputError(f"{display(request.speaker)}: is silent: there is no voice in it")
        waveform = np.zeros(0, np.float32)
        if request.input is not None:
            waveform = self._recording(request.input, request.continuation_only)
        return Prompt(waveform, output.position, output.sample, request.seed)

    def seconds(self, output: PlannedOutput, read: Prompt) -> float:
        request = output.request
        asked = request.duration if isinstance(request, ContinueRequest | GenerateRequest) else None
        return asked or len(read.waveform) / self.rate

    def make(self, batch: list[PlannedOutput], read: list[Prompt], progress: Progress | None) -> Iterator[Output]:
        from audiolm_cli import pipeline

        request, self._together = batch[0].request, len(batch)
        if isinstance(request, ContinueRequest):
            return pipeline.continue_(self.bundle, request, read, batch_size=self.batch_size, progress=progress)
        if isinstance(request, GenerateRequest):
            return pipeline.generate(self.bundle, request, read, batch_size=self.batch_size, progress=progress)
        assert isinstance(request, ResynthRequest)
        return pipeline.resynth(
            self.bundle, request, read, speaker=self.speaker(request), batch_size=self.batch_size, progress=progress
        )

    def speaker(self, request: ResynthRequest) -> np.ndarray | None:
        return self._recording(request.speaker, False) if request.speaker else None

    def run(self, batch: list[PlannedOutput], fail_fast: bool = False) -> int:
        if batch[0].target == "-":
            return streaming.run(self, batch[0])
        return super().run(batch, fail_fast)

    def warn_unfamiliar(self, output: PlannedOutput, made: Output) -> None:
        if made.unfamiliar and not output.sample:  # once for all samples of a prompt
            self.console.note(
                f"{display(str(output.request.input))}: unlike what the bundle {self.bundle.config.name} was trained "
                f"on ({made.unfamiliar}); expect little of it"
            )

    def origin(self, output: PlannedOutput, request: SampledRequest, prompt: int) -> Origin:
        """The watermark and metadata of an output behind `prompt` samples."""
        return Origin(self.bundle, request, prompt, self._made_with(output, request))

    def named(self, output: PlannedOutput) -> str:
        return "the loudspeaker" if self.stream_options.play else _named(output.target)

    def write(self, output: PlannedOutput, made: Output) -> dict[str, Any]:
        request, config = cast(SampledRequest, output.request), self.bundle.config
        origin = self.origin(output, request, made.prompt_samples)
        waveform = origin.marked(made.waveform)
        self.warn_unfamiliar(output, made)
        drawn = None
        if output.picture:
            drawn = plot.png(made, config.tokens, f"{_named(output.target)}, {config.name}, seed {request.seed}")
            _check_existing(output, origin.tags, drawn)
        new = len(made.waveform) - made.prompt_samples
        factor = sum(made.stage_seconds.values()) * self.rate / (new * self._together)  # the seconds are the batch's
        clipped = 0
        if output.existing != output.target:
            clipped = files.write(output.target, waveform, self.rate, origin.tags, self.force)
        if output.picture and drawn and output.existing != output.picture:
            atomic.write(output.picture, drawn, self.force)
        self.console.note(f"{_named(output.target)}: {new / self.rate:g} s of new audio, real-time factor {factor:.2f}")
        self.warn_clipped(output, clipped)
        return self.record(
            output,
            seed=request.seed,
            position=output.position,
            sample=output.sample,
            watermark_bits=origin.bits,
            prompt_seconds=origin.kept / self.rate,
            new_seconds=new / self.rate,
            seconds=len(waveform) / self.rate,
            batch=self._together,
            kernel=self.settings["kernel"],
            stages={
                stage: {
                    "seconds": seconds,
                    "tokens": tokens,
                    "tokens_per_second": tokens / seconds if seconds else None,
                }
                for stage, seconds in made.stage_seconds.items()
                for tokens in (made.stage_tokens.get(stage, 0),)
            },
            real_time_factor=factor,
            peak=_peak(waveform),
            clipped=clipped,
            surprise=made.surprise,
            unfamiliar=bool(made.unfamiliar),
            unfamiliar_reason=made.unfamiliar or None,
            candidates=list(made.candidates) or None,
            candidate=made.candidates.index(max(made.candidates)) if made.candidates else None,
        )

    def _made_with(self, output: PlannedOutput, request: SampledRequest) -> dict[str, Any]:
        """The options that determine the audio, for the metadata."""
        asked: dict[str, Any] = {
            name: getattr(request, name) for name in request.options() if name not in WITHOUT_EFFECT_ON_SOUND
        }
        if isinstance(request, ContinueRequest):
            asked["prompt_seconds"] = request.prompt_seconds or self.bundle.config.prompt_seconds
            asked["best_of"] = request.best_of if request.best_of > 1 else None  # as without the option
        asked["until_end"] = asked.get("until_end") or None  # as without the option
        limit = request.pause_limit(self.bundle.config)
        asked["max_pause"] = limit if limit < math.inf else None
        if asked.get("duration") == math.inf:
            asked["duration"] = "inf"  # JSON has no such number
        if request.speaker:
            asked["speaker"] = os.path.basename(request.speaker)[-80:]  # a comment has room for 2,000 characters
        return {
            **{name: value for name, value in asked.items() if value is not None},
            **vars(request.sampling(self.bundle.config.sampling)),
            "batch_size": self.batch_size,
            "position": output.position,
            "sample": output.sample,
            **self.settings,
        }


WITHOUT_EFFECT_ON_SOUND = {"input", "output", "num_samples", "seed", "plot", "continuation_only", "no_watermark"}


class EncodeRunner(BatchRunner[np.ndarray, "tuple[Tokens, int]"]):
    """`encode`: a recording becomes a file of tokens."""

    def read(self, output: PlannedOutput) -> np.ndarray:
        return self.recording(str(output.request.input))

    def seconds(self, output: PlannedOutput, read: np.ndarray) -> float:
        return len(read) / self.rate

    def make(
        self, batch: list[PlannedOutput], read: list[np.ndarray], progress: Progress | None
    ) -> Iterator[tuple[Tokens, int]]:
        from audiolm_cli import pipeline

        for waveform in read:
            yield pipeline.encode(self.bundle, waveform, progress), len(waveform)

    def write(self, output: PlannedOutput, made: tuple[Tokens, int]) -> dict[str, Any]:
        tokens, samples = made
        atomic.write(output.target, tokens.save_bytes(), self.force)
        return self.record(output, seconds=samples / self.rate)


class DecodeRunner(BatchRunner["Tokens", np.ndarray]):
    """`decode`: a file of tokens becomes an audio file."""

    def read(self, output: PlannedOutput) -> Tokens:
        return read_tokens(str(output.request.input), self.bundle)

    def seconds(self, output: PlannedOutput, read: Tokens) -> float:
        return 0

    def make(self, batch: list[PlannedOutput], read: list[Tokens], progress: Progress | None) -> Iterator[np.ndarray]:
        from audiolm_cli import pipeline

        for output, tokens in zip(batch, read, strict=True):
            quantizers = cast(DecodeRequest, output.request).quantizers
            yield pipeline.decode(cast("Bundle", self.bundle), tokens, quantizers, progress)

    def write(self, output: PlannedOutput, made: np.ndarray) -> dict[str, Any]:
        quantizers = cast(DecodeRequest, output.request).quantizers or self.bundle.config.tokens.quantizers
        tags = provenance.tags(self.bundle, options={"quantizers": quantizers})
        clipped = files.write(output.target, made, self.rate, tags, self.force)
        self.warn_clipped(output, clipped)
        return self.record(
            output, quantizers=quantizers, seconds=len(made) / self.rate, peak=_peak(made), clipped=clipped
        )


def _check_existing(output: PlannedOutput, tags: dict[str, str], picture: bytes) -> None:
    """Raises OutputError if an output exists without its picture, or the reverse, and was made with another seed or
    other options."""
    if output.existing is None:
        return
    if output.existing == output.target:
        try:
            with soundfile.SoundFile(output.target) as sound:
                same = sound.copy_metadata().get("comment") == tags["comment"]
        except soundfile.LibsndfileError:
            same = False
    else:
        with open(output.existing, "rb") as file:
            same = file.read() == picture
    if not same:
        raise OutputError(
            f"{display(output.existing)}: exists already, made in another way; use --force to make both again"
        )


def _named(target: str) -> str:
    return "standard output" if target == "-" else display(target)


def _peak(waveform: np.ndarray) -> float:
    return float(np.abs(waveform).max(initial=0))
