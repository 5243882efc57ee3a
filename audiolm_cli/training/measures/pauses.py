"""What is heard between words: whether it is noise, as in a room, or a pattern, and how loud it is.

A decoder that cannot draw noise repeats a frame: then the sound resembles itself 20 ms later. Looked at are stretches
of 0.1 s, the quietest fifth of them. Audio is `float32 [T]` at 16 kHz.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from audiolm_cli.training import RATE

STRETCH, LAG = RATE // 10, RATE // 50  # samples; a frame of the codec
QUIETEST = 5  # one of so many stretches


class Pause(NamedTuple):
    """Averages over the quietest stretches. `of_noise` is the correlation of differences of neighbouring samples, in
    which the hum and rumble that many rooms have, and which repeat themselves as well, hardly count."""

    correlation: float  # at LAG
    of_noise: float
    level: float  # dB below a full-scale square wave


def between_words(samples: np.ndarray) -> Pause:
    """NaN for less than one stretch; a correlation is NaN also where nothing but digital silence is left."""
    count = len(samples) // STRETCH
    if not count:
        return Pause(*[float("nan")] * 3)
    stretches = samples[: count * STRETCH].reshape(count, STRETCH).astype(np.float64)
    power = np.square(stretches).mean(1)
    quiet = np.argsort(power, kind="stable")[: max(1, count // QUIETEST)]
    level = float((10 * np.log10(power[quiet] + 1e-10)).mean())
    return Pause(_correlation(stretches[quiet]), _correlation(np.diff(stretches[quiet])), level)


def _correlation(stretches: np.ndarray) -> float:
    """Of each of `[N, T]` with itself LAG later, on average."""
    early, late = stretches[:, :-LAG], stretches[:, LAG:]
    scale = np.sqrt(np.square(early).sum(1) * np.square(late).sum(1))
    sounding = scale > 1e-12
    return float(((early * late).sum(1)[sounding] / scale[sounding]).mean()) if sounding.any() else float("nan")
