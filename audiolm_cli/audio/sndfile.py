"""Decodes audio files with libsndfile, and helps it with unfinished headers, MP3, Ogg, and FLAC of unknown length."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import IO

import numpy as np
import soundfile

from audiolm_cli.audio import headers

_stderr_lock = threading.Lock()


@contextlib.contextmanager
def without_messages() -> Iterator[None]:
    """Silences libmpg123, which prints to the process's stderr, while a file is read."""
    try:
        saved = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    with _stderr_lock, open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


class _Straight(soundfile.SoundFile):
    """Reads MP3, Ogg, and FLAC of unknown length without the seek that soundfile adds after every read. In MP3 of a low
    bit rate and at the end of Opus, that seek discards state that later frames need, which garbles them; such FLAC
    cannot seek at its end."""

    def seekable(self) -> bool:
        return self.format not in ("MP3", "OGG") and self.frames < headers.UNKNOWN and super().seekable()


class SndfileDecoder:
    """A file decoded by libsndfile, with the interface of `ffmpeg.FfmpegDecoder`; `length` in frames is 0 if uncertain.
    Raises LibsndfileError if libsndfile cannot decode it."""

    def __init__(self, file: IO[bytes]):
        mended = headers.mended(file)
        file.seek(0)
        self.file = sound = _Straight(mended or file.fileno(), closefd=False)
        self.samplerate, self.channels = sound.samplerate, sound.channels
        self.tags = {key: text for key, text in sound.copy_metadata().items() if text}  # ID3 tags can be empty
        self.length = 0 if sound.format in ("MP3", "OGG", "FLAC") else sound.frames  # else from the file's size
        self.complaint = "the header was never finished" if mended else ""
        self.promised = headers.promised_frames(sound, file)

    def blocks(self, skipped: int = 0) -> Iterator[np.ndarray]:
        """The samples, float32 [n, channels], after `skipped` frames; can be called once."""
        frames = skipped
        with contextlib.suppress(soundfile.LibsndfileError):  # the rest is damaged or missing
            if skipped:
                self.file.seek(skipped)
            while len(block := self.file.read(4096, dtype="float32", always_2d=True)):  # at most one block is lost
                frames += len(block)
                yield block
        if frames < self.promised:
            self.complaint = "the file is truncated"
