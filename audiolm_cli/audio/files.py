"""Reads audio files (downmixed, resampled) and writes them (encoded, with tags)."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
import soxr

from audiolm_cli import atomic
from audiolm_cli.audio import ffmpeg, inputs, sndfile
from audiolm_cli.errors import InputError, OutputError, TooLongError, UsageError, display

FORMATS = {  # by suffix of the output
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
MAX_SECONDS = 3600  # of one input, so that a small file that decodes to days of silence does not fill the memory
MAX_END_SECONDS = 24 * 3600  # of an input of which only the end is used; bounds the time
MIN_RATE, MAX_RATE = 1000, 1_000_000  # Hz
CANCELLED = 0.1  # share of the energy


@dataclass(frozen=True)
class Recording:
    """Mono audio, `samples` float32 [T] in [-1, 1] at `rate` Hz; `notes` say how the file was changed; `tags` are its
    metadata under libsndfile's names (title, artist, comment, software, ...)."""

    samples: np.ndarray
    rate: int
    notes: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)


def read(source: str | os.PathLike[str], rate: int, end_only: bool = False) -> Recording:
    """Reads a recording as mono at `rate` Hz.

    `source` is a path or "-" for standard input; any format, sample rate and number of channels that libsndfile reads,
    or ffmpeg if it is installed. The file is read, downmixed and resampled block by block: memory beyond the result
    does not grow with its length. If channels cancel each other, the strongest is used instead of the mix. `end_only`
    keeps the last hour of longer recordings.

    Raises InputError, with `source` in the message, for a file that is missing, not audio, empty, longer than an hour
    (with `end_only`, a day), or has NaN or infinite samples. A truncated or damaged file that still decodes is used,
    and noted.
    """
    with inputs.opened(source) as file:
        return read_file(file, display(source), rate, end_only)


def read_file(file: IO[bytes], name: str, rate: int, end_only: bool = False, most: float | None = None) -> Recording:
    """The same of an open file, unbuffered and with a descriptor, which messages call `name`. Raises TooLongError where
    it lasts longer than `most` seconds, by default an hour."""
    most = MAX_SECONDS if most is None else most
    recording, strongest = _heard(file, name, rate, end_only, most)
    if strongest is not None:
        recording, _ = _heard(file, name, rate, end_only, most, strongest)
    return recording


def unpack(source: str | os.PathLike[str], rate: int, target: IO[bytes]) -> tuple[str, ...]:
    """Writes a recording of up to a day into an empty file as mono samples int16 at `rate` Hz, block by block, and
    returns the notes; otherwise as `read`."""
    name = display(source)

    def write(piece: np.ndarray) -> None:
        target.write(pcm16(piece).tobytes())

    with inputs.opened(source) as file:
        notes, _, strongest = _decoded(file, name, rate, write, MAX_END_SECONDS)
        if strongest is not None:
            target.seek(0)
            target.truncate()
            notes, _, _ = _decoded(file, name, rate, write, MAX_END_SECONDS, channel=strongest)
    return tuple(notes)


def _heard(
    file: IO[bytes], name: str, rate: int, end_only: bool, longest: float, channel: int | None = None
) -> tuple[Recording, int | None]:
    """The file's audio, of one `channel` or downmixed; if downmixing cancels the channels, also the channel to use
    instead."""
    pieces: collections.deque[np.ndarray] = collections.deque()
    most, kept = MAX_SECONDS * rate, 0

    def keep(piece: np.ndarray) -> None:
        nonlocal kept
        pieces.append(piece)
        kept += len(piece)
        while kept - len(pieces[0]) >= most:
            kept -= len(pieces.popleft())

    longest, last = (MAX_END_SECONDS, MAX_SECONDS) if end_only else (longest, None)
    notes, tags, strongest = _decoded(file, name, rate, keep, longest, last, channel)
    if kept > most and (note := _left_out()) not in notes:
        notes.append(note)
    return Recording(np.concatenate(pieces)[-most:], rate, tuple(notes), tags), strongest


def _left_out() -> str:
    return f"longer than {MAX_SECONDS // 60} minutes: what comes before is left out"


def _decoded(
    file: IO[bytes], name: str, rate: int, take: Callable[[np.ndarray], object], longest: float,
    last: int | None = None, channel: int | None = None,
) -> tuple[list[str], dict[str, str], int | None]:  # fmt: skip
    """Passes the file's audio to `take` piece by piece, mono at `rate` Hz: one `channel`, or downmixed; only the `last`
    seconds if the file tells its length. Returns notes, tags, and the channel to use instead if downmixing cancels the
    channels."""
    with _decoder(file, name) as sound:
        if not MIN_RATE <= sound.samplerate <= MAX_RATE:
            raise InputError(f"{name}: a sample rate of {sound.samplerate} Hz is outside {MIN_RATE} to {MAX_RATE}")
        mono = _Mono(sound, name, longest, last, channel)
        for piece in _resampled(mono, sound.samplerate, rate):
            take(piece)
        if mono.frames == 0:
            raise InputError(f"{name}: there is no audio in it")
        notes = []
        if channel is not None:
            notes.append(f"its {sound.channels} channels cancel each other: the strongest, {channel + 1}, is used")
        elif sound.channels > 1:
            notes.append(f"downmixed from {sound.channels} channels")
        if sound.samplerate != rate:
            notes.append(f"resampled from {sound.samplerate} to {rate} Hz")
        if mono.clipped:
            notes.append(f"{mono.clipped} samples beyond full scale clipped")
        if sound.complaint:
            notes.append(f"{sound.complaint}: {mono.frames / sound.samplerate:.2f} s of it are used")
        if mono.skipped:
            notes.append(_left_out())
        return notes, sound.tags, mono.strongest()


def resampled(samples: np.ndarray, old: int, new: int) -> np.ndarray:
    """Resamples audio `float32 [T]` from `old` to `new` Hz, as `read` does."""
    return np.concatenate(list(_resampled([samples], old, new)))


def check_format(suffix: str, rate: int | None = None) -> None:
    """Raises UsageError if the installed libsndfile cannot write a format of FORMATS, or not at `rate` Hz."""
    container, subtype = FORMATS[suffix]
    if not soundfile.check_format(container, subtype):
        version = soundfile.__libsndfile_version__
        raise UsageError(
            f"{suffix}: libsndfile {version}, which is installed here, cannot write it; .wav and .flac work"
        )
    if rate is not None:
        try:
            soundfile.SoundFile(io.BytesIO(), "w", rate, 1, subtype, format=container).close()
        except soundfile.LibsndfileError:
            raise UsageError(f"{suffix}: cannot have the bundle's rate, {rate} Hz; .wav, .flac and .ogg can") from None


def encode(samples: np.ndarray, rate: int, suffix: str, tags: dict[str, str]) -> tuple[bytes, int]:
    """Encodes mono audio in the format of FORMATS that `suffix` names.

    Takes float32 [T] at `rate` Hz; returns the file's bytes and the number of clipped samples, those beyond [-1, 1].
    `tags` are libsndfile's (title, artist, comment, software, ...). WAV and FLAC are 16 bit.

    Raises OutputError for NaN or infinite samples, which would become full-scale clicks.
    """
    pcm, buffer = pcm16(samples), io.BytesIO()
    with opened_for(buffer, rate, suffix, tags) as sound:
        for block in np.array_split(pcm, len(pcm) // 65536 + 1):  # libvorbis overflows its stack on long blocks
            sound.write(block)
    data = buffer.getvalue()
    return (_named(data, tags.get("software", "")) if FORMATS[suffix][0] == "MP3" else data), beyond(samples)


def opened_for(file: Any, rate: int, suffix: str, tags: dict[str, str]) -> soundfile.SoundFile:
    """Opens a file of a format in FORMATS for writing mono audio, with its tags."""
    container, subtype = FORMATS[suffix]
    sound = soundfile.SoundFile(file, "w", rate, 1, subtype, format=container)
    for key, value in tags.items():  # before the first sample: libsndfile drops later ones silently
        setattr(sound, key, value)
    return sound


def pcm16(samples: np.ndarray) -> np.ndarray:
    """Audio as `int16 [T]`. Raises OutputError for NaN or infinite samples, which would become clicks."""
    if not np.isfinite(samples).all():
        raise OutputError("the audio has NaN or infinite samples and was not written")
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def beyond(samples: np.ndarray) -> int:
    """The number of samples beyond full scale."""
    return int(np.count_nonzero(np.abs(samples) > 1))


def _named(mp3: bytes, software: str) -> bytes:
    """Puts the software's name into the first ID3 frame of an MP3 file, where LAME writes its own name regardless.

    The length stays the same: text in ID3 ends at a NUL.
    """

    def name(match: re.Match[bytes]) -> bytes:
        size = len(match[2])
        return match[1] + software.encode("latin-1", "replace")[:size].ljust(size, b"\0")

    return re.sub(rb"\A(ID3.{7}TSSE.{6}\0)(LAME [^)]*\))", name, mp3, count=1, flags=re.DOTALL)


def write(
    target: str | os.PathLike[str], samples: np.ndarray, rate: int, tags: dict[str, str], force: bool = False
) -> int:
    """Encodes float32 [T] at `rate` Hz by the suffix of `target` and writes it; returns the number of clipped samples.

    "-" is standard output, as WAV. Raises OutputError; see `encode` and `atomic.write`.
    """
    suffix = ".wav" if os.fspath(target) == "-" else Path(target).suffix.lower()
    data, clipped = encode(samples, rate, suffix, tags)
    atomic.write(target, data, force)
    return clipped


@contextlib.contextmanager
def _decoder(file: IO[bytes], name: str) -> Iterator[sndfile.SndfileDecoder | ffmpeg.FfmpegDecoder]:
    """Opens the file with libsndfile, or else ffmpeg."""
    file.seek(0)
    if not file.read(1):
        raise InputError(f"{name}: the file is empty")
    with sndfile.without_messages():
        try:
            sound = sndfile.SndfileDecoder(file)
        except soundfile.LibsndfileError:
            sound = None
        if sound is not None:
            with sound.file:
                yield sound
            return
    with ffmpeg.FfmpegDecoder(file, name) as other:
        yield other


class _Mono:
    """Iterates over a file's audio as mono float32 [n] in [-1, 1] at its own rate, and gathers statistics."""

    def __init__(
        self,
        sound: sndfile.SndfileDecoder | ffmpeg.FfmpegDecoder,
        name: str,
        longest: float,
        last: int | None,
        channel: int | None,
    ) -> None:
        self.sound, self.name, self.channel, self.longest = sound, name, channel, longest
        self.most = longest * sound.samplerate
        self.skipped = 0 if last is None else max(0, sound.length - last * sound.samplerate)
        self.frames = self.clipped = 0
        self.energies, self.mixed = np.zeros(sound.channels), 0.0  # of each channel, of the mix

    def __iter__(self) -> Iterator[np.ndarray]:
        sound = self.sound
        self._check_length(sound.length - self.skipped)
        for block in sound.blocks(self.skipped):
            if not np.isfinite(block).all():
                raise InputError(f"{self.name}: has NaN or infinite samples")
            self.frames += len(block)
            self._check_length(self.frames)
            self.clipped += int(np.count_nonzero(np.abs(block) > 1))
            block = np.clip(block, -1, 1)
            mono = block.mean(axis=1) if self.channel is None else block[:, self.channel]
            if sound.channels > 1 and self.channel is None:
                self.energies += np.square(np.diff(block, axis=0)).sum(axis=0)  # of differences, to ignore hum
                self.mixed += float(np.square(np.diff(mono)).sum())
            yield mono

    def _check_length(self, frames: int) -> None:
        if frames > self.most:
            if self.longest < MAX_SECONDS:
                raise TooLongError(f"{self.name}: longer than {self.longest:g} seconds; cut it first")
            way = "cut it first; `continue --continuation-only` reads only the end of what is longer than 60"
            raise TooLongError(f"{self.name}: longer than {self.longest // 60:.0f} minutes; {way}")

    def strongest(self) -> int | None:
        """The channel with the most energy if the mix has less than a tenth of the energy that independent channels
        would give it, as with inverted channels; else None."""
        independent = self.energies.sum() / self.sound.channels**2
        return int(self.energies.argmax()) if self.mixed < CANCELLED * independent else None


def _resampled(blocks: Iterable[np.ndarray], old: int, new: int) -> Iterator[np.ndarray]:
    """Resamples a stream of float32 [n] from `old` to `new` Hz: T samples become T * new / old, rounded."""
    if old == new:
        yield from blocks
        return
    stream = soxr.ResampleStream(old, new, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block)).clip(-1, 1)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True).clip(-1, 1)
