"""Cuts a recording at its pauses, and says of each stretch whether it is usable or why not.

The measures are simple; their figures come from three speech corpora, a minute each of piano, guitar, strings and
flute, and mixtures of these. A stretch is `noisy` if its level falls by less than 20 dB between syllables: clean
recordings have at least 28 dB. White noise 10 dB below speech is caught in 93 % of the stretches, 15 dB below in 3 %. A
stretch is `music` if its spectrum stays the same over 0.16 s, as notes do and voices do not: the correlation of clean
recordings is at most 0.17, that of all the music above 0.35. Of speech over equally loud music 69 % is dropped as
either, over music 10 dB below it 43 %. Drums alone, echo and a second voice pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from audiolm_cli.audio.postfilter import CLIPPED, overload

Fate = Literal["usable", "silent", "clipped", "noisy", "music"]

FRAMES = 100  # a second, in which levels are measured
SILENT = -60.0  # dBFS: pauses are quieter
PAUSE = 0.3  # s, the shortest pause to cut in
LONG_PAUSE = 1.0  # s, a pause that ends a stretch
MARGIN = 0.25  # s of pause that a stretch keeps on either side
SHORTEST, LONGEST = 1.0, 12.0  # s of a stretch; a longer one is cut at a pause, or where it is quietest
SPREAD = 20.0  # dB between the 5th and the 95th percentile of levels
SAME = 0.35  # correlation of a spectrum with the one LAG later
LAG, WINDOW, HOP = 0.16, 0.064, 0.016  # s
TONES = 100.0, 4000.0  # Hz, the band in which notes are detected
DETAIL = 15  # bins over which a spectrum is smoothed to get its envelope


class Stretch(NamedTuple):
    """Samples `first` to `last` of a recording, and their `fate`: usable, or why not."""

    first: int
    last: int
    fate: Fate


def cut(samples: np.ndarray, rate: int, speech: bool = True) -> list[Stretch]:
    """The stretches with sound of a recording `float32 [T]`, in order; the rest is silent. Noise and music are detected
    only if the recording is `speech`."""
    return [Stretch(a, b, _fate(samples[a:b], rate, speech)) for a, b in _sounding(levels(samples, rate), rate)]


def levels(samples: np.ndarray, rate: int) -> np.ndarray:
    """Levels in dBFS, `[T * FRAMES / rate]`."""
    size = rate // FRAMES
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    return 10 * np.log10(frames.var(1) + 1e-10)  # variance: a DC offset is silence


def _sounding(level: np.ndarray, rate: int) -> Iterator[tuple[int, int]]:
    """First and last samples of stretches, with their margins."""
    if not len(level) or (loud := np.percentile(level, 95)) < SILENT:
        return
    floor = np.percentile(level, 5)
    active = level > max(loud - 35, floor + 0.3 * (loud - floor), SILENT)
    phrases = _joined(_runs(active), PAUSE)
    pieces = [piece for phrase in phrases for piece in _split(level, *phrase)]
    stretches: list[tuple[int, int]] = []
    for first, last in pieces:
        near = stretches and first - stretches[-1][1] < LONG_PAUSE * FRAMES
        if near and last - stretches[-1][0] <= LONGEST * FRAMES:
            stretches[-1] = stretches[-1][0], last
        else:
            stretches.append((first, last))
    bounds = [0, *(edge for stretch in stretches for edge in stretch), len(level)]
    size, margin = rate // FRAMES, round(MARGIN * FRAMES)
    for n, (first, last) in enumerate(stretches):
        before, behind = first - bounds[2 * n], bounds[2 * n + 3] - last
        first -= min(margin, before // 2 if n else before)
        last += min(margin, behind // 2 if n + 1 < len(stretches) else behind)
        if last - first >= SHORTEST * FRAMES:
            yield first * size, last * size


def _runs(active: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(active.astype(np.int8), prepend=0, append=0))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _joined(runs: list[tuple[int, int]], pause: float) -> list[tuple[int, int]]:
    """Merges runs with shorter pauses between them."""
    found: list[tuple[int, int]] = []
    for first, last in runs:
        if found and first - found[-1][1] < pause * FRAMES:
            found[-1] = found[-1][0], last
        else:
            found.append((first, last))
    return found


def _split(level: np.ndarray, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Cuts a run without a pause where it is quietest, into pieces that are not too long."""
    half = round(LONGEST / 2 * FRAMES)
    while last - first > 2 * half:
        quietest = first + half + int(np.argmin(level[first + half : first + 2 * half]))
        yield first, quietest
        first = quietest
    yield first, last


def _fate(samples: np.ndarray, rate: int, speech: bool) -> Fate:
    if overload(samples) > CLIPPED:
        return "clipped"
    if speech and sameness(samples, rate) > SAME:
        return "music"
    if speech and np.subtract(*np.percentile(levels(samples, rate), (95, 5))) < SPREAD:
        return "noisy"
    return "usable"


def sameness(samples: np.ndarray, rate: int) -> float:
    """The correlation of the spectrum's fine structure with that LAG before, over loud frames."""
    size, hop, lag = round(WINDOW * rate), round(HOP * rate), round(LAG / HOP)
    if len(samples) < size + lag * hop:
        return 0.0
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop] * np.hanning(size).astype(np.float32)
    low, high = (round(edge * WINDOW) for edge in TONES)
    energy = np.square(np.abs(np.fft.rfft(frames)[:, low:high])) + 1e-10
    power, loudness = 10 * np.log10(energy), 10 * np.log10(energy.sum(1))
    sums = np.cumsum(np.pad(power, ((0, 0), (DETAIL // 2 + 1, DETAIL // 2)), mode="edge"), 1)
    detail = np.clip(power - (sums[:, DETAIL:] - sums[:, :-DETAIL]) / DETAIL, -6, 20)
    detail -= detail.mean(1, keepdims=True)
    detail /= np.linalg.norm(detail, axis=1, keepdims=True) + 1e-9
    loud = loudness > np.percentile(loudness, 95) - 25
    both = loud[:-lag] & loud[lag:]
    return float((detail[:-lag] * detail[lag:]).sum(1)[both].mean()) if both.any() else 0.0
