"""Streaming audio encoders for pipes: bytes once written are final, and the length may be unknown."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import soundfile

from audiolm_cli.audio import files
from audiolm_cli.checks import listed
from audiolm_cli.errors import UsageError

# s16le: raw samples, 16 bit, little-endian. No MP3: its first frame would hold a wrong frame count.
FORMATS = ("wav", "s16le", "flac", "ogg", "opus")
UNKNOWN = 0xFFFFFFFF  # a WAV stream's unknown size, as ffmpeg and sox write it


def check_format(option: str, value: object) -> str:
    """The name of a format. Raises UsageError for an unknown one."""
    if not isinstance(value, str) or value not in FORMATS:
        raise UsageError(f"{option}: must be {listed(FORMATS)}, not {value!r}")
    return value


class Encoder:
    """Encodes mono audio `float32 [T]` at `rate` Hz, piece by piece. With `samples`, the number to come, a WAV file
    equals that of `files.encode`, and FLAC states its length. `clipped` counts samples beyond full scale."""

    def __init__(
        self, write: Callable[[bytes], None], rate: int, format: str, tags: dict[str, str], samples: float = math.inf
    ):
        self.write, self.rate, self.format, self.tags, self.clipped = write, rate, format, tags, 0
        self.sound: soundfile.SoundFile | None = None
        if format == "wav":
            write(wav_header(rate, tags, samples))
        elif format != "s16le":
            self.sound = files.opened_for(_Forward(write, samples), rate, f".{format}", tags)

    def push(self, samples: np.ndarray) -> None:
        """Encodes samples and writes what is ready. Raises OutputError for NaN or infinite samples."""
        self.clipped += files.beyond(samples)
        data = files.pcm16(samples)
        if self.sound is not None:
            self.sound.write(data)
        elif len(data):
            self.write(data.astype("<i2").tobytes())

    def finish(self) -> None:
        if self.sound is not None:
            self.sound.close()


def wav_header(rate: int, tags: dict[str, str], samples: float) -> bytes:
    """The header of a WAV file of that many samples; if infinite, with the sizes of a stream."""
    header, _ = files.encode(np.zeros(0, np.float32), rate, ".wav", tags)
    data = UNKNOWN if samples == math.inf else 2 * int(samples)
    whole = UNKNOWN if samples == math.inf else len(header) - 8 + data
    return header[:4] + whole.to_bytes(4, "little") + header[8:-4] + data.to_bytes(4, "little")


class _Forward:
    """A write-only, forward-only file for libsndfile: rewrites of earlier bytes (headers with sizes) are dropped. For
    FLAC, the number of samples is put into STREAMINFO at first writing."""

    def __init__(self, write: Callable[[bytes], None], samples: float):
        self._write, self.samples, self.place, self.end = write, samples, 0, 0

    def write(self, data: bytes) -> int:
        data = bytes(data)
        if self.place == self.end:
            if self.place == 4 and data[:4] == b"\0\0\0\x22" and self.samples < 2**36:
                said = int(self.samples) | data[17] >> 4 << 36  # 36 bits, after four of another field
                data = data[:17] + said.to_bytes(5, "big") + data[22:]
            self._write(data)
            self.end += len(data)
        self.place += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = offset + (0, self.place, self.end)[whence]
        return self.place

    def tell(self) -> int:
        return self.place

    def read(self, size: int = -1) -> bytes:
        return b""
