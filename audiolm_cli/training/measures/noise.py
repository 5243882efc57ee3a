"""Noise behind a piano's notes: what lies between their partials while they decay, and how flat the spectrum is.

Audio is `float32 [T]` at 16 kHz. Needs the extra `eval`.

A decaying note is a sum of spectral lines, each as wide as the window's main lobe. Lines are peaks that stand out of
what lies beyond their lobes; without them, the mean power of the bins nearby, which also stands for that under the
lines, is the noise. So nothing need be known of the notes, and chords are measured as single notes are. Where lines are
less than about 60 Hz apart nothing is left between them: there noise is taken from the neighbourhood.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from audiolm_cli.training import RATE

WINDOW, HOP = 4096, 1024  # samples: 3.9 Hz a bin
LOBE = 5  # bins to either side of a line that are its own: the main lobe's 4, and one for lines between two bins
BEYOND = 14  # bins to either side, 55 Hz, as far as the lobe's neighbourhood goes
STANDS_OUT = 12.0  # dB above the median of that neighbourhood
NEARBY = 33  # bins to either side, 130 Hz, whose mean is the noise in one
LOWEST = 50.0  # Hz: outputs have nothing below
SETTLED = 0.06  # s after an onset: the hammer's knock is over
QUIET = 50.0  # dB below the loudest window: not measured
FLAT_WINDOW, FLAT_HOP = 1024, 256  # samples
AUDIBLE = 40.0  # dB below the loudest frame: how flat quieter ones are is not heard


def behind_notes(samples: np.ndarray, onsets: Sequence[float] | np.ndarray) -> float:
    """Energy between the partials relative to theirs, dB: the median over windows of 0.26 s in which notes decay.

    These have none of the `onsets` (in s), do not grow louder, and are not much quieter than the loudest. NaN if there
    are none.
    """
    found = [noise_to_lines(part) for part in decays(samples, onsets)]
    return float(np.median(found)) if found else float("nan")


def decays(samples: np.ndarray, onsets: Sequence[float] | np.ndarray) -> list[np.ndarray]:
    """The windows `float64 [4096]` in which notes decay."""
    attacks = np.asarray(onsets, float) * RATE
    parts, levels = [], []
    for start in range(0, len(samples) - WINDOW + 1, HOP):
        part = samples[start : start + WINDOW].astype(np.float64)
        early, late = (float(np.square(half).mean()) for half in np.split(part, 2))
        levels.append(early + late)
        attacked = (attacks > start - SETTLED * RATE) & (attacks < start + WINDOW)
        parts.append(part if late <= early and not attacked.any() else None)
    least = max(levels, default=0.0) * 10 ** (-QUIET / 10)
    return [part for part, level in zip(parts, levels, strict=True) if part is not None and level > max(least, 1e-10)]


def noise_to_lines(part: np.ndarray) -> float:
    """The power of the noise relative to that of the spectral lines of a window `float64 [4096]`, dB."""
    from scipy.ndimage import binary_dilation, maximum_filter1d, median_filter, uniform_filter1d
    from scipy.signal.windows import blackmanharris

    spectrum = np.fft.rfft(part * blackmanharris(WINDOW, sym=False))
    power = np.square(np.abs(spectrum))[round(LOWEST * WINDOW / RATE) :] + 1e-12
    beyond = np.ones(2 * BEYOND + 1, bool)
    beyond[BEYOND - LOBE : BEYOND + LOBE + 1] = False
    peaks = (power >= maximum_filter1d(power, 3)) & (
        power > 10 ** (STANDS_OUT / 10) * median_filter(power, footprint=beyond, mode="reflect")
    )
    between = ~binary_dilation(peaks, iterations=LOBE)
    size = 2 * NEARBY + 1
    room = uniform_filter1d(between.astype(float), size)
    mean = uniform_filter1d(np.where(between, power, 0.0), size) / np.maximum(room, 1e-9)
    known = room > 0.5 / size
    noise = np.where(between, power, np.interp(np.arange(len(power)), np.flatnonzero(known), mean[known]))
    lines = max(float(power.sum() - noise.sum()), 1e-12)
    return float(10 * np.log10(noise.sum() / lines))


def flatness(samples: np.ndarray) -> float:
    """The spectral flatness of what is heard, 0 for a line to about 0.56 for white noise: the median over frames of
    64 ms, without those much quieter than the loudest. NaN for silence
    and for less than a frame."""
    import librosa

    if len(samples) < FLAT_WINDOW:
        return float("nan")
    power = np.square(np.abs(librosa.stft(samples, n_fft=FLAT_WINDOW, hop_length=FLAT_HOP, center=False)))
    level = power.sum(0)
    heard = power[:, level > max(level.max(initial=0) * 10 ** (-AUDIBLE / 10), 1e-8)]
    if not heard.size:
        return float("nan")
    return float(np.median(librosa.feature.spectral_flatness(S=heard, power=1.0)))
