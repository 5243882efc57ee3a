"""Recordings for tests: something like a voice, with pauses."""

from __future__ import annotations

import numpy as np

RATE = 16000


def speech(seconds: float, seed: int = 0) -> np.ndarray:
    """float32 [T]: phrases of gliding syllables, 1 to 3 s each, and pauses of 0.4 to 0.8 s with a little noise."""
    rng = np.random.default_rng(seed)
    parts, length = [], 0
    while length < seconds * RATE:
        syllables = rng.integers(5, 15)
        phrase = [_syllable(rng) for _ in range(syllables)] + [np.zeros(int(rng.uniform(0.4, 0.8) * RATE))]
        parts += phrase
        length += sum(map(len, phrase))
    samples = np.concatenate(parts)[: round(seconds * RATE)]
    return (samples + 1e-4 * rng.standard_normal(len(samples))).astype(np.float32)


def _syllable(rng: np.random.Generator) -> np.ndarray:
    length = int(rng.uniform(0.12, 0.3) * RATE)
    time = np.arange(length) / RATE
    pitch = 2 * np.pi * np.cumsum(rng.uniform(90, 150) * (1 + rng.uniform(-2, 2) * time)) / RATE
    tone = sum(np.sin(n * pitch + rng.uniform(0, 6)) / n for n in range(1, 12))
    return 0.1 * tone * np.hanning(length) + 0.02 * rng.standard_normal(length) * np.hanning(length) ** 4


def notes(seconds: float) -> np.ndarray:
    """float32 [T]: chords of half a second."""
    time = np.arange(round(seconds * RATE)) / RATE
    chord = (time * 2).astype(int) % 4
    tones = [220 * 2 ** (np.array(steps) / 12) for steps in ((0, 4, 7), (5, 9, 12), (7, 11, 14), (2, 5, 9))]
    found = np.zeros_like(time)
    for n, frequencies in enumerate(tones):
        for frequency in frequencies:
            found += (chord == n) * sum(np.sin(2 * np.pi * frequency * k * time) / k for k in (1, 2, 3))
    return (0.05 * found * np.exp(-3 * (time * 2 % 1))).astype(np.float32)
