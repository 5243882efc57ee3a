"""Data augmentation: another microphone, room, vocal tract or line, for models that learn from clean speech.

Everything keeps its timing, except for `changed`, which returns its rate.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
from scipy import fft

from audiolm_cli.training import RATE


@dataclass(frozen=True)
class Changes:
    """How often and how strongly crops are augmented. Chances are shares of all crops."""

    rate: tuple[float, float] = (0.85, 1.18)  # pitch, formants and tempo together
    rate_chance: float = 0.5
    equaliser: float = 3.0  # dB, standard deviation
    room: tuple[float, float] = (0.1, 0.7)  # s, reverberation time (RT60)
    room_chance: float = 0.35
    band: tuple[float, float] = (2800.0, 7500.0)  # Hz, of a low-pass
    band_chance: float = 0.25
    noise: tuple[float, float] = (3.0, 40.0)  # dB below speech
    noise_chance: float = 0.6
    level: float = 10.0  # dB up or down


def changed(
    samples: np.ndarray, rng: np.random.Generator, how: Changes, length: int | None = None
) -> tuple[np.ndarray, float]:
    """Speech `float32 [T]` -> `float32 [length]`, by default all of it, and the rate: new sample n corresponds to old
    sample n * rate. T must be at least length * rate, for the highest rate that `how` allows. By default some samples
    at the end are left out, and the rate changes by as little, for fast transforms.
    """
    rate = float(np.exp(rng.uniform(*np.log(how.rate)))) if rng.random() < how.rate_chance else 1.0
    length = length or fft.prev_fast_len(int(len(samples) / rate), real=True)
    old = samples[: fft.prev_fast_len(round(length * rate), real=True)]
    rate = len(old) / length
    spectrum = fft.rfft(old.astype(np.float32))
    bins = length // 2 + 1
    spectrum = np.pad(spectrum, (0, max(0, bins - len(spectrum))))[:bins] * (length / len(old))
    gain = equaliser(bins, rng, how.equaliser)
    if rng.random() < how.band_chance:
        edge = rng.uniform(*how.band)
        gain -= np.clip(np.linspace(0, RATE / 2, bins) / edge - 1, 0, 1) * 200  # dB
    spectrum *= 10 ** (gain / 20)
    if rng.random() < how.room_chance:
        spectrum *= fft.rfft(room(rng, float(rng.uniform(*how.room))), length)
    out = fft.irfft(spectrum, length)
    loud = np.sqrt(np.mean(np.square(out))) + 1e-6
    if rng.random() < how.noise_chance:
        out += noise(length, rng) * loud * 10 ** (-rng.uniform(*how.noise) / 20)
    out *= 10 ** (rng.uniform(-how.level, how.level) / 20)
    return np.clip(out, -1, 1).astype(np.float32), rate


def room(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """An impulse response: the direct sound, then noise that decays by 60 dB in that time."""
    time = np.arange(round(seconds * RATE)) / RATE
    echo = rng.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    echo *= 10 ** (rng.uniform(-15, 3) / 20) / np.sqrt(np.square(echo).sum())  # energy relative to the direct sound
    echo[: round(rng.uniform(0.002, 0.01) * RATE)] = 0  # the first wall
    echo[0] = 1
    return echo


def noise(length: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of unit power with a random slope: white to brown."""
    spectrum = fft.rfft(rng.standard_normal(length, np.float32))
    frequency = np.arange(len(spectrum), dtype=np.float32) * (RATE / length)
    spectrum *= np.maximum(frequency, 50.0) ** np.float32(-rng.uniform(0, 1))
    out = fft.irfft(spectrum, length)
    return out / np.sqrt(np.mean(np.square(out)))


def transcoded(samples: np.ndarray, rate: int, **how: Any) -> np.ndarray:
    """Audio written and read again by libsndfile, with options `how` of soundfile.write. Lossy formats may add to the
    length."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **how)
    file.seek(0)
    decoded: np.ndarray = soundfile.read(file, dtype="float32")[0]
    return decoded


def equaliser(bins: int, rng: np.random.Generator, deviation: float) -> np.ndarray:
    """Gains in dB with a standard deviation, `[bins]`, interpolated from six random ones along frequency."""
    return np.interp(np.linspace(0, 5, bins), np.arange(6), rng.normal(0, deviation, 6))
