"""Streams one output while it is sampled: to standard output, or to the system's audio."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np

from audiolm_cli import atomic
from audiolm_cli.audio.encoding import Encoder, wav_header
from audiolm_cli.command_line import plot
from audiolm_cli.console import write_stdout
from audiolm_cli.errors import AudioLMError, OutputError, UsageError
from audiolm_cli.request import ContinueRequest, GenerateRequest, ResynthRequest

if TYPE_CHECKING:
    from audiolm_cli.command_line.batch import SamplingRunner
    from audiolm_cli.command_line.planning import PlannedOutput
    from audiolm_cli.pipeline import Chunk

Sampled = ContinueRequest | GenerateRequest | ResynthRequest
AHEAD = 16  # chunks, of at most a second, sampled ahead of playback


class Sink(Protocol):
    """Where audio goes; call `finish` once complete, `close` in any case."""

    def push(self, samples: np.ndarray) -> None: ...
    def finish(self) -> None: ...
    def close(self) -> None: ...


def run(runner: SamplingRunner, output: PlannedOutput) -> int:
    """Makes an output while streaming it; returns the number of failures, already reported."""
    try:
        _run(runner, output)
    except AudioLMError as error:
        runner.console.error(error)
        return 1
    return 0


def _run(runner: SamplingRunner, output: PlannedOutput) -> None:
    from audiolm_cli import pipeline

    request, console = cast("Sampled", output.request), runner.console
    with console.status("reading"):
        prompt = runner.read(output)
        speaker = runner.speaker(request) if isinstance(request, ResynthRequest) else None
    extent = request.extent(len(prompt.waveform), runner.rate)
    origin = runner.origin(output, request, extent.prompt)
    marking = origin.marking()
    sink: Sink = Player(runner.rate) if runner.stream_options.play else Pipe(runner, origin.tags, extent.total)
    found: list[Chunk] = []
    samples = 0
    with contextlib.closing(sink):
        stream = pipeline.stream(runner.bundle, request, prompt, speaker=speaker, batch_size=runner.batch_size)
        with _until_interrupted(getattr(request, "duration", 0) == math.inf):
            for chunk in stream:
                if not found:
                    runner.warn_unfamiliar(output, stream.output([chunk]))
                samples += len(chunk.waveform)
                with _undisturbed():
                    sink.push(marking.push(chunk.waveform))
                if output.picture or not found:
                    found.append(chunk)
        sink.push(marking.finish())
        sink.finish()
    made = stream.output(found)
    if output.picture:
        title = f"{runner.named(output)}, {runner.bundle.config.name}, seed {request.seed}"
        atomic.write(output.picture, plot.png(made, runner.bundle.config.tokens, title), runner.force)
    new = (samples - made.prompt_samples) / runner.rate
    factor = sum(made.stage_seconds.values()) / new if new else 0.0
    console.note(f"{runner.named(output)}: {new:g} s of new audio, real-time factor {factor:.2f}")
    runner.warn_clipped(output, getattr(sink, "clipped", 0))
    console.result(runner.record(output))


class Pipe:
    """Standard output in the requested format. If it is a regular file, a WAV header gets its sizes at the end."""

    def __init__(self, runner: SamplingRunner, tags: dict[str, str], samples: float):
        format = runner.stream_options.format or "wav"
        self.encoder, self.written = Encoder(self._write, runner.rate, format, tags, samples), 0
        self.header = (runner.rate, tags) if format == "wav" and samples == math.inf else None

    def _write(self, data: bytes) -> None:
        write_stdout(data)

    @property
    def clipped(self) -> int:
        return self.encoder.clipped

    def push(self, samples: np.ndarray) -> None:
        self.encoder.push(samples)
        self.written += len(samples)

    def finish(self) -> None:
        self.encoder.finish()
        if self.header is None:
            return
        with contextlib.suppress(OSError, ValueError, AttributeError):
            number = sys.__stdout__.fileno()  # type: ignore[union-attr]
            header = wav_header(*self.header, self.written)
            if stat.S_ISREG(os.fstat(number).st_mode):
                start = os.lseek(number, 0, os.SEEK_CUR) - len(header) - 2 * self.written
                os.lseek(number, max(0, start), os.SEEK_SET)
                if start == 0:
                    os.write(number, header)
                os.lseek(number, 0, os.SEEK_END)

    def close(self) -> None:
        pass


def check_player() -> ModuleType:
    """The module for playback. Raises UsageError if it is not installed, or there is no output device."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:  # an OSError without PortAudio
        raise UsageError(f"--play: needs sounddevice and PortAudio: pip install 'audiolm[play]' ({error})") from None
    try:
        sounddevice.query_devices(kind="output")
    except (sounddevice.PortAudioError, ValueError) as error:
        raise UsageError(f"--play: there is no device to play through ({error})") from None
    return sounddevice


class Player:
    """The system's audio, fed by a thread, so that sampling continues during playback."""

    def __init__(self, rate: int):
        module = check_player()
        try:
            self.device = module.OutputStream(samplerate=rate, channels=1, dtype="float32")
            self.device.start()
        except module.PortAudioError as error:
            raise OutputError(f"--play: cannot play at {rate} Hz: {error}") from None
        self.error: Exception | None = None
        self.queue: queue.Queue[np.ndarray | None] = queue.Queue(AHEAD)
        self.thread = threading.Thread(target=self._play, daemon=True)
        self.thread.start()

    def _play(self) -> None:
        while (samples := self.queue.get()) is not None:
            if self.error is None:
                try:
                    self.device.write(np.ascontiguousarray(samples[:, None]))
                except Exception as error:  # raised in the caller's thread
                    self.error = error

    def push(self, samples: np.ndarray) -> None:
        if self.error is not None:
            raise OutputError(f"--play: {self.error}")
        self.queue.put(samples)

    def finish(self) -> None:
        self.queue.put(None)
        self.thread.join()
        if self.error is not None:
            raise OutputError(f"--play: {self.error}")
        self.device.stop()  # after everything has been played

    def close(self) -> None:
        self.device.close()


@contextlib.contextmanager
def _until_interrupted(endless: bool) -> Iterator[None]:
    """For an endless output, makes Ctrl-C its regular end."""
    try:
        yield
    except KeyboardInterrupt:
        if not endless:
            raise


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Delays Ctrl-C while writing, so that no sample is cut in two."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
