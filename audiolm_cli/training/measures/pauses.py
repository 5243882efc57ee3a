"""The sound between words: whether it is noise, as in a room, or a pattern, and its level.

A decoder that cannot produce noise repeats a frame: then the audio resembles itself 20 ms later. Measured on the
quietest fifth of stretches of 0.1 s. Audio is `float32 [T]` at 16 kHz.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from audiolm_cli.training import RATE

STRETCH, LAG = RATE // 10, RATE // 50  # samples; a codec frame
QUIETEST = 5  # one in this many stretches


class PauseStatistics(NamedTuple):
    """Averages over the quietest stretches. `of_noise` is the correlation of differences of neighbouring samples, which
    nearly removes the hum and rumble of many rooms, as these repeat themselves as well."""

    correlation: float  # at LAG
    of_noise: float
    level: float  # dB below a full-scale square wave


def between_words(samples: np.ndarray) -> PauseStatistics:
    """NaN for less than one stretch; correlations are also NaN for digital silence."""
    count = len(samples) // STRETCH
    if not count:
        return PauseStatistics(*[float("nan")] * 3)
    stretches = samples[: count * STRETCH].reshape(count, STRETCH).astype(np.float64)
    power = np.square(stretches).mean(1)
    quiet = np.argsort(power, kind="stable")[: max(1, count // QUIETEST)]
    level = float((10 * np.log10(power[quiet] + 1e-10)).mean())
    return PauseStatistics(_correlation(stretches[quiet]), _correlation(np.diff(stretches[quiet])), level)


def _correlation(stretches: np.ndarray) -> float:
    """Mean correlation of each of `[N, T]` with itself LAG later."""
    early, late = stretches[:, :-LAG], stretches[:, LAG:]
    scale = np.sqrt(np.square(early).sum(1) * np.square(late).sum(1))
    sounding = scale > 1e-12
    return float(((early * late).sum(1)[sounding] / scale[sounding]).mean()) if sounding.any() else float("nan")
