"""The melody of speech, and how well it is kept: pitch by probabilistic YIN (Mauch and Dixon, 2014; librosa).

Audio is `float32 [T]` at 16 kHz. Needs the extra `eval`.
"""

from __future__ import annotations

import numpy as np

from audiolm_cli.training import RATE

LOWEST, HIGHEST = 60.0, 500.0  # Hz, of speaking voices
HOP, WINDOW = 320, 1024  # samples
LEAST = 25  # frames voiced in both, half a second, required for a result


def contour(samples: np.ndarray) -> np.ndarray:
    """Pitch in octaves above 1 Hz, every 20 ms, `float64 [T // 320 + 1]`; NaN where unvoiced."""
    import librosa

    if not np.any(samples):
        return np.full(len(samples) // HOP + 1, np.nan)
    hertz, _, _ = librosa.pyin(
        samples, fmin=LOWEST, fmax=HIGHEST, sr=RATE, frame_length=WINDOW, hop_length=HOP, resolution=0.2
    )
    return np.log2(hertz)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson correlation of two contours where both are voiced: independent of the voices' pitch, it compares how they
    move. NaN with less than LEAST frames, or without any movement."""
    length = min(len(one), len(other))
    a, b = one[:length], other[:length]
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < LEAST or min(a[both].std(), b[both].std()) < 1e-9:
        return float("nan")
    return float(np.corrcoef(a[both], b[both])[0, 1])
