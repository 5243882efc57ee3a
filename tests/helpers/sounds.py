"""Made-up sounds, and files of them in formats that libsndfile does not know."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the program ffmpeg")
# What libsndfile cannot read and ffmpeg writes; options for it, where a suffix does not say all.
FFMPEG_FORMATS = {
    "m4a": "",
    "mp4": "-f lavfi -i color=s=16x16:d=1 -map 0:a -map 1:v -c:v mpeg4",  # whose first stream is a picture
    "aac": "",
    "mov": "-c:a alac",
    "webm": "-c:a libopus",
    "mka": "-c:a ac3",
    "wma": "",
    "flv": "-c:a aac",
    "ts": "-c:a aac",
    "avi": "-c:a mp2",
    "wv": "",
    "tta": "",
    "caf": "-c:a alac",
    "dts": "-c:a dca -strict -2",
    "spx": "-c:a libspeex",
    "sox": "",
}


def tone(seconds: float, rate: int = 16000) -> np.ndarray:
    """float32 [T]: a soft chord."""
    time = np.arange(round(seconds * rate)) / rate
    return np.sum([0.1 * np.sin(2 * np.pi * pitch * time) for pitch in (220, 331, 447)], axis=0).astype(np.float32)


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    """float32 [T] at 16 kHz."""
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * 16000))).astype(np.float32)


def recorded_with_ffmpeg(folder: Path, suffix: str, samples: np.ndarray, *options: str) -> Path:
    """A file of `samples` (16 kHz) in one of FFMPEG_FORMATS; it is not there where this ffmpeg cannot write it."""
    target, source = folder / f"a.{suffix}", folder / "source.wav"
    soundfile.write(source, samples, 16000)
    command = f"ffmpeg -v error -y -i {source} {FFMPEG_FORMATS[suffix]}".split()
    result = subprocess.run([*command, *options, target], stdin=subprocess.DEVNULL, capture_output=True)
    source.unlink()
    if result.returncode:
        target.unlink(missing_ok=True)
    return target
