"""Wrong lengths in the headers of audio files: never filled in, or longer than the file."""

from __future__ import annotations

import io
import os
import re
from typing import IO, TYPE_CHECKING

import soundfile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ENDLESS = b"\xff\xff\xff\xff"  # a length that libsndfile reads as "to the end of the file"


def mended(file: IO[bytes]) -> IO[bytes] | None:
    """A WAV, RF64 or AU file whose header was never finished, as when its recorder was killed, read to its end.

    Such a header has the length 0 or that of the first block, but more samples follow. None if nothing is wrong.
    """
    head = _at(file, 0, 12)
    if head[:4] == b".snd" and head[8:12] == bytes(4):
        return _Mended(file, {8: ENDLESS})
    if head[:4] not in (b"RIFF", b"RF64") or head[8:] != b"WAVE":
        return None
    place, end = 12, os.fstat(file.fileno()).st_size
    for _ in range(100):
        name, size = _chunk(file, place)
        if name == b"data":
            break
        place += 8 + size + size % 2
    else:
        return None
    if head[:4] == b"RF64":  # its length is in the first chunk
        size = int.from_bytes(_at(file, 28, 8), "little")
    behind = place + 8 + size + size % 2
    following, length = _chunk(file, behind)
    is_chunk = following.isascii() and following.decode("latin-1").isprintable() and behind + 8 + length <= end
    if is_chunk or end - behind <= size:  # a few other bytes are no recording
        return None
    return _Mended(file, {0: b"RIFF", place + 4: ENDLESS})


UNKNOWN = 2**62  # frames: libsndfile's value for a FLAC stream of unknown length


def promised_frames(sound: soundfile.SoundFile, file: IO[bytes]) -> int:
    """The number of frames that the header promises, since libsndfile silently accepts a file that is shorter."""
    if "MPEG" in sound.subtype and not (sound.format == "MP3" and _counts_frames(file)):
        return 0  # an estimate
    if sound.frames >= UNKNOWN:
        return 0
    log = sound.extra_info
    sizes = re.findall(
        r"^ *(?:data|SSND|BODY|Data Size|Riff size|riff) *: (\d+) \(should be (\d+)\)", log, re.MULTILINE
    )
    if any(int(there) < int(said) < 0x7FFF0000 for said, there in sizes):  # larger ones mean "until the end", in pipes
        return sound.frames + 1
    if re.search("[Ss]eems to be (a )?truncated|lacks an end-of-stream bit", log):
        return sound.frames + 1
    return sound.frames


def _counts_frames(file: IO[bytes]) -> bool:
    """Whether an MP3 file states its length, in the first frame of an encoder."""
    start = 0
    head = _at(file, 0, 10)
    if head[:3] == b"ID3":
        start = 10 + sum((byte & 127) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
    return any(tag in _at(file, start, 2048) for tag in (b"Xing", b"Info", b"VBRI"))


def _chunk(file: IO[bytes], place: int) -> tuple[bytes, int]:
    """Name and length of the RIFF chunk at an offset; zeros past the end."""
    head = _at(file, place, 8).ljust(8, b"\0")
    return head[:4], int.from_bytes(head[4:], "little")


def _at(file: IO[bytes], place: int, count: int) -> bytes:
    return os.pread(file.fileno(), count, min(place, 2**62))  # a 64-bit length can point past any file


class _Mended(io.FileIO):
    """A file with some bytes replaced, given by offset."""

    def __init__(self, file: IO[bytes], bytes_at: dict[int, bytes]):
        super().__init__(file.fileno(), closefd=False)
        self.bytes_at = bytes_at
        self.seek(0)

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        try:
            return super().seek(offset, whence)
        except OSError:  # before the start, by a damaged header: libsndfile notices
            return self.tell()

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        start = self.tell()
        count = super().readinto(buffer) or 0
        view = memoryview(buffer)
        for place, right in self.bytes_at.items():
            for n, byte in enumerate(right, place - start):
                if 0 <= n < count:
                    view[n : n + 1] = bytes([byte])
        return count
