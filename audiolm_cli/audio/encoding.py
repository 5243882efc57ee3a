"""Sound as a file while it comes, for pipes: what is written is final, and nobody knows how long it goes on."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import soundfile

from audiolm_cli.audio import files
from audiolm_cli.checks import listed
from audiolm_cli.errors import UsageError

# s16le: samples alone, 16 bit, little-endian. Not MP3, whose first frame would count the others wrongly.
FORMATS = ("wav", "s16le", "flac", "ogg", "opus")
UNKNOWN = 0xFFFFFFFF  # in WAV: the size of what goes on, as ffmpeg and sox write it


def check_format(option: str, value: object) -> str:
    """The name of a format. Raises UsageError for what is none."""
    if not isinstance(value, str) or value not in FORMATS:
        raise UsageError(f"{option}: must be {listed(FORMATS)}, not {value!r}")
    return value


class Encoder:
    """Encodes mono sound `float32 [T]` at `rate` Hz, piece by piece. With `samples`, as many as will come, a WAV file
    is the one that `files.encode` makes, and FLAC says how long it is. `clipped` counts samples beyond full scale."""

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
        """Writes what can be written by now. Raises OutputError for what is not finite."""
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
    """The beginning of a WAV file of so many samples; where they are infinite, with the sizes of a stream."""
    header, _ = files.encode(np.zeros(0, np.float32), rate, ".wav", tags)
    data = UNKNOWN if samples == math.inf else 2 * int(samples)
    whole = UNKNOWN if samples == math.inf else len(header) - 8 + data
    return header[:4] + whole.to_bytes(4, "little") + header[8:-4] + data.to_bytes(4, "little")


class _Forward:
    """A file for libsndfile that goes nowhere but forward: what it would write again, a header with sizes, is left. The
    STREAMINFO of FLAC has its number of samples from the first."""

    def __init__(self, write: Callable[[bytes], None], samples: float):
        self._write, self.samples, self.place, self.end = write, samples, 0, 0

    def write(self, data: bytes) -> int:
        data = bytes(data)
        if self.place == self.end:
            if self.place == 4 and data[:4] == b"\0\0\0\x22" and self.samples < 2**36:
                said = int(self.samples) | data[17] >> 4 << 36  # 36 bits behind four others
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
