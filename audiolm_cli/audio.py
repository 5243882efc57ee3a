"""Audio files in and out: read, downmix, resample; encode and write so that nothing is lost or left half-written."""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import os
import re
import secrets
import shutil
import stat
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import ceil, gcd
from pathlib import Path
from typing import IO

import numpy as np
import soundfile

from audiolm_cli.console import write_stdout
from audiolm_cli.errors import ExistsError, InputError, OutputError, display

FORMATS = {".wav": ("WAV", "PCM_16"), ".flac": ("FLAC", "PCM_16"), ".ogg": ("OGG", "VORBIS")}  # by suffix of the output
MAX_SECONDS = 3600  # of one input; keeps a small file that unpacks to days of silence from filling the memory
MAX_BYTES = 2**30  # of an input that cannot be read piece by piece: a pipe, or a file of tokens
MIN_RATE, MAX_RATE = 1000, 1_000_000  # Hz

_stderr_lock = threading.Lock()


@dataclass(frozen=True)
class Recording:
    """Mono audio, `samples` float32 [T] in [-1, 1] at `rate` Hz; `notes` say what was done to the file to get it;
    `tags` are those of libsndfile's (title, artist, comment, software, ...) that it has."""

    samples: np.ndarray
    rate: int
    notes: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)


def check(source: str | os.PathLike[str]) -> None:
    """Raises InputError when `source` cannot be opened for reading; costs no reading."""
    pipe = os.path.exists(source) and not os.path.isfile(source) and not os.path.isdir(source)
    if os.fspath(source) != "-" and not pipe:  # a pipe can be opened only once
        with _opened(source):
            pass


def read(source: str | os.PathLike[str], rate: int) -> Recording:
    """Reads a recording as mono at `rate` Hz.

    `source` is a path or "-" for standard input; any format, sample rate and number of channels that libsndfile reads.
    The file is read, downmixed and resampled block by block: memory beyond the result does not grow with its length.

    Raises InputError, with `source` in the message, for what is missing, not audio, empty, longer than an hour, or
    contains NaN or infinite samples. A truncated file that still decodes is used, and noted.
    """
    name = display(source)
    with _opened(source) as file, _without_mpeg_warnings(file):
        try:
            sound = soundfile.SoundFile(file if isinstance(file, io.BytesIO) else file.fileno(), closefd=False)
        except soundfile.LibsndfileError:
            raise InputError(f"{name}: {_why_not_audio(file)}") from None
        with sound:
            if not MIN_RATE <= sound.samplerate <= MAX_RATE:
                raise InputError(f"{name}: a sample rate of {sound.samplerate} Hz is outside {MIN_RATE} to {MAX_RATE}")
            blocks = _Blocks(sound, name)
            pieces = list(_resampled(blocks, sound.samplerate, rate))
            if blocks.frames == 0:
                raise InputError(f"{name}: there is no audio in it")
            notes = [f"downmixed from {sound.channels} channels"] if sound.channels > 1 else []
            if sound.samplerate != rate:
                notes.append(f"resampled from {sound.samplerate} to {rate} Hz")
            if blocks.clipped:
                notes.append(f"{blocks.clipped} samples beyond full scale clipped")
            if blocks.truncated:
                notes.append(f"the file is truncated: {blocks.frames / sound.samplerate:.2f} s of it are used")
            tags = sound.copy_metadata()
    return Recording(np.concatenate(pieces), rate, tuple(notes), tags)


def resampled(samples: np.ndarray, old: int, new: int) -> np.ndarray:
    """Sound `float32 [T]` at `old` Hz as one at `new` Hz, as `read` does it."""
    return np.concatenate(list(_resampled([samples], old, new)))


def read_bytes(source: str | os.PathLike[str]) -> bytes:
    """The bytes of a file of tokens, or of standard input for "-"; raises InputError."""
    with _opened(source) as file:
        return _read_all(file, display(source))


def encode(samples: np.ndarray, rate: int, suffix: str, tags: dict[str, str]) -> tuple[bytes, int]:
    """Encodes mono audio as a file of the format that `suffix` names (".wav", ".flac" or ".ogg").

    Takes float32 [T] at `rate` Hz and returns the file's bytes and the number of samples that were beyond [-1, 1] and
    were clipped. `tags` are libsndfile's (title, artist, comment, software, ...). WAV and FLAC are 16 bit.

    Raises OutputError when samples are NaN or infinite: written, they would be full-scale clicks.
    """
    if not np.isfinite(samples).all():
        raise OutputError("the audio has NaN or infinite samples and was not written")
    container, subtype = FORMATS[suffix]
    clipped = int(np.count_nonzero(np.abs(samples) > 1))
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", rate, 1, subtype, format=container) as sound:
        for key, value in tags.items():  # before the first sample: later ones are dropped silently
            setattr(sound, key, value)
        for block in np.array_split(samples, len(samples) // 65536 + 1):  # libvorbis overflows its stack on long ones
            sound.write(np.clip(np.rint(block * 32768.0), -32768, 32767).astype(np.int16))
    return buffer.getvalue(), clipped


def write(
    target: str | os.PathLike[str], samples: np.ndarray, rate: int, tags: dict[str, str], force: bool = False
) -> int:
    """Encodes float32 [T] at `rate` Hz by the suffix of `target` and writes it; returns the number of clipped samples.

    "-" is standard output, as WAV. Raises OutputError; see `encode` and `write_bytes`.
    """
    suffix = ".wav" if os.fspath(target) == "-" else Path(target).suffix.lower()
    data, clipped = encode(samples, rate, suffix, tags)
    write_bytes(target, data, force)
    return clipped


def write_bytes(target: str | os.PathLike[str], data: bytes, force: bool = False) -> None:
    """Writes a whole file beside `target` and then moves it there, so that `target` is complete or untouched.

    "-" is standard output. Without `force` an existing file is never replaced, not even one that appears meanwhile;
    with it, the new one has its permissions. Raises ExistsError when it exists, OutputError when it is no regular file
    or cannot be written.
    """
    if os.fspath(target) == "-":
        write_stdout(data)
        return
    path = os.path.realpath(target)  # a symbolic link stays one
    part = os.path.join(os.path.dirname(path), f".audiolm-{secrets.token_hex(6)}.tmp")
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OutputError(f"{display(target)}: not a regular file")
        try:
            replaced = force and os.path.exists(path)
            _write_new(part, data, 0o600 if replaced else 0o666)
            if replaced:
                _like(path, part)
            elif not force:
                _reserve(part, path)
            os.replace(part, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
    except FileExistsError:
        raise ExistsError(f"{display(target)}: exists already; use --force to replace it") from None
    except OSError as error:
        raise OutputError(f"{display(target)}: cannot be written: {error.strerror}") from None


def _like(path: str, part: str) -> None:
    """Gives `part` the owner, the mode and the access list of the file at `path`, as far as the system allows."""
    with contextlib.suppress(OSError, AttributeError):
        os.chown(part, os.stat(path).st_uid, os.stat(path).st_gid)
    with contextlib.suppress(OSError):
        shutil.copystat(path, part)
        os.utime(part)  # is new


def _write_new(path: str, data: bytes, mode: int) -> None:
    """Writes a file that is not there yet. Where the system can do that (Linux) it has no name before it is whole: a
    killed process leaves nothing half-written behind."""
    folder, nameless = os.path.dirname(path), None
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # a file system that cannot
            nameless = os.open(folder, os.O_TMPFILE | os.O_WRONLY, mode)
    own = functools.partial(os.open, mode=mode)
    with open(path, "xb", opener=own) if nameless is None else open(nameless, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # a full disk shows here, not after the move
        if nameless is not None:
            place = os.open(folder, os.O_RDONLY)  # given it, link() follows the symbolic link that /proc has
            try:
                os.link(f"/proc/self/fd/{nameless}", path, src_dir_fd=place)
            finally:
                os.close(place)


def _reserve(part: str, path: str) -> None:
    """Takes `path` for the file `part`; raises FileExistsError where there is something already."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))


@contextlib.contextmanager
def _opened(source: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """The source opened for reading: a file, or a BytesIO with all of it where it cannot be searched (a pipe)."""
    name = display(source)
    if os.fspath(source) == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise InputError("standard input: nothing is piped into it")
        yield io.BytesIO(_read_all(sys.stdin.buffer, name))
        return
    try:
        file = open(source, "rb", buffering=0)  # libsndfile shares the descriptor and its position
    except FileNotFoundError:
        raise InputError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{name}: a directory, not a recording") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    with file:
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        yield file if regular else io.BytesIO(_read_all(file, name))


def _read_all(file: IO[bytes], name: str) -> bytes:
    try:
        data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{name}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise InputError(f"{name}: larger than {MAX_BYTES >> 20} MB")
    return data


def _why_not_audio(file: IO[bytes]) -> str:
    file.seek(0)
    return "not audio that libsndfile can read" if file.read(1) else "the file is empty"


@contextlib.contextmanager
def _without_mpeg_warnings(file: IO[bytes]) -> Iterator[None]:
    """Keeps libmpg123, which prints to the process's stderr by itself, quiet while an MPEG file is read."""
    head = file.read(3)
    file.seek(0)
    if not (head == b"ID3" or (len(head) == 3 and head[0] == 0xFF and head[1] >= 0xE0)):
        yield
        return
    with _stderr_lock, open(os.devnull, "wb") as devnull:
        saved = os.dup(2)
        os.dup2(devnull.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


class _Blocks:
    """Iterates over a sound file as mono float32 [n] in [-1, 1] at its own rate; then says what was found."""

    def __init__(self, sound: soundfile.SoundFile, name: str):
        self.sound, self.name = sound, name
        self.frames = self.clipped = 0
        self.truncated = False

    def __iter__(self) -> Iterator[np.ndarray]:
        sound = self.sound
        size = 4096  # what is lost at most before a place that cannot be decoded
        while True:
            try:
                block = sound.read(size, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError:  # the rest is damaged or missing
                self.truncated = True
                break
            if len(block) == 0:
                break
            if not np.isfinite(block).all():
                raise InputError(f"{self.name}: has NaN or infinite samples")
            self.frames += len(block)
            if self.frames > MAX_SECONDS * sound.samplerate:
                raise InputError(f"{self.name}: longer than {MAX_SECONDS // 60} minutes; cut it first")
            self.clipped += int(np.count_nonzero(np.abs(block) > 1))
            yield np.clip(block, -1, 1).mean(axis=1)
        self.truncated |= self.frames < _announced_frames(sound)


def _announced_frames(sound: soundfile.SoundFile) -> int:
    """How many frames the header promises; libsndfile silently believes the file's length where that is shorter."""
    if sound.format == "MP3":  # its header, where there is one, only estimates
        return 0
    sizes = re.findall(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", sound.extra_info, re.MULTILINE)
    if any(int(there) < int(said) < 0x7FFF0000 for said, there in sizes):  # larger ones mean "until the end", in pipes
        return sound.frames + 1
    return sound.frames


def _resampled(blocks: Iterable[np.ndarray], old: int, new: int) -> Iterator[np.ndarray]:
    """Resamples a stream of float32 [n] from `old` to `new` Hz: T samples become ceil(T * new / old).

    Windowed-sinc interpolation with torchaudio's defaults (Hann window over 6 zero crossings, cutoff 0.99), of which
    only the weights that are not zero are kept: torchaudio's own table takes gigabytes when the two rates share no
    factor, and importing it takes seconds.
    """
    if old == new:
        yield from blocks
        return
    old, new = old // gcd(old, new), new // gcd(old, new)
    cutoff = min(1.0, new / old) * 0.99  # relative to the old Nyquist frequency
    half = ceil(6 / cutoff)
    offsets = np.arange(1 - half, half + 1)  # of the old samples around a new one
    # Output i lies at i * old / new: `phase` new-ths behind the old sample before it, phase = i * old % new.
    distance = (np.arange(new)[:, None] / new - offsets) * cutoff
    weights = cutoff * np.sinc(distance) * np.cos(np.pi / 12 * np.clip(distance, -6, 6)) ** 2
    weights = weights.astype(np.float32)  # [phase, 2 * half]

    held, first = np.zeros(half - 1, np.float32), 1 - half  # old samples still needed, and the place of the first
    total = done = 0  # old samples seen, new ones made
    for block in itertools.chain(blocks, [np.zeros(half, np.float32)]):
        held = np.concatenate([held, block])
        total += len(block)
        ready = max(done, -((half - total) * new // old))  # those whose last old sample has been seen
        for start in range(done, ready, 32768):
            index = np.arange(start, min(start + 32768, ready))
            windows = np.lib.stride_tricks.sliding_window_view(held, 2 * half)[index * old // new + 1 - half - first]
            yield np.einsum("nk,nk->n", windows, weights[index * old % new]).clip(-1, 1)
        done = ready
        unneeded = max(0, done * old // new + 1 - half - first)
        held, first = held[unneeded:], first + unneeded
