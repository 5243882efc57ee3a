"""An inaudible mark on generated sound: spread-spectrum modulation of its spectrum, found again without the original.

Time and frequency are divided into tiles of 16 ms and 125 Hz. A pseudo-random pattern of signs, one for every tile,
which repeats every 1.5 s, says which tiles are made a little louder and which a little quieter; so the mark rises and
falls with the sound and stays 20 dB below it in every band. Tiles that are quieter than their band mostly is change by
more: these carry what little energy the mark may have farthest. There is one pattern for each bundle, of 64, and the
patterns together say that this program made the sound.

To find it, every tile is compared with those around it (`_relief`), and the comparison is correlated with all patterns
at all offsets. Of sound without a mark the correlation is distributed about as a standard normal, whatever the sound,
since the signs are random: `THRESHOLD` is what it does not reach by chance. After Cox et al., "Secure Spread Spectrum
Watermarking for Multimedia" (1997), and the patchwork methods that followed it.
"""

from __future__ import annotations

import functools
import hashlib
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

RATE = 16000  # Hz, at which marks are searched for
HOP_SECONDS = 0.004  # between spectra, whose windows are four times as long
FRAMES, BINS = 4, 2  # of a tile: 16 ms, 125 Hz
BIN = 62.5  # Hz
FIRST, BANDS = 7, 58  # tiles cover the bins from FIRST on: 410 to 7,660 Hz
PERIOD = 96  # tiles
PROGRAM, PROGRAM_BITS, BUNDLE_BITS = 1, 2, 6
STRENGTH = 0.098  # amplitude of the mark, of a band's: about 21 dB below it, in any third of an octave 20 at least
QUIETER = 0.7  # quiet tiles change by more: by (energy of the band / of the tile) ** (QUIETER / 2)
MOST = 0.6  # by which a tile's amplitude changes at most
THIRDS = 100 * 2 ** (np.arange(20) / 3)  # Hz: edges of thirds of an octave, up to 8 kHz
LOUDEST = 0.1  # amplitude of the mark in each, of the sound's
REACH = 2 * BIN  # as far beside its band a mark is heard
ROUNDS = 4  # of making what is too loud quieter
LEAK = 2.0  # a band's mark is heard in those beside it: it has room for so many times their energy at most
WINDOW_TILES, STEP_TILES = 125, 25  # 2 s of sound are searched at a time, every 0.4 s
THRESHOLD = 7.0  # standard deviations
EXTENDED = 8  # times that the ends of a mark are looked for at most
BLOCK, CHUNK = 4096, 1 << 20  # frames and samples dealt with at a time: memory hardly grows with length


class Mark(NamedTuple):
    """A stretch from `start` to `end` (s) with the mark of the bundle of that id; `confidence` is how far the best two
    seconds of it lie above chance, in standard deviations."""

    start: float
    end: float
    bundle: int
    confidence: float


def bundle_id(name: str) -> int:
    """The id that stands for bundles of this name: the first bits of its SHA-256."""
    return hashlib.sha256(name.encode()).digest()[0] >> (8 - BUNDLE_BITS)


def bits(bundle: int) -> str:
    """What a mark says, as `0` and `1`: the program's id and the bundle's."""
    return f"{PROGRAM:0{PROGRAM_BITS}b}{bundle:0{BUNDLE_BITS}b}"


@functools.cache
def patterns() -> np.ndarray:
    """The signs, `float32 [bundles, PERIOD, BANDS]`: bits of SHAKE-128 of the program's name and the two ids."""
    rows = [
        hashlib.shake_128(f"audiolm {PROGRAM} {n}".encode()).digest(PERIOD * BANDS // 8)
        for n in range(1 << BUNDLE_BITS)
    ]
    bits = np.unpackbits(np.frombuffer(b"".join(rows), np.uint8))
    return bits.reshape(-1, PERIOD, BANDS).astype(np.float32) * 2 - 1


def embed(samples: np.ndarray, rate: int, bundle: int, begin: int = 0) -> np.ndarray:
    """Sound `float32 [T]` at `rate` Hz with the mark of a bundle's id from sample `begin` on; silence stays silent, and
    nothing that was within full scale leaves it."""
    made, gains = samples[begin:], np.ones(BANDS)
    for _ in range(ROUNDS):
        mark = _mark(samples, rate, bundle, begin, gains)
        excess = _excess(made, mark, rate)
        if excess.max() <= 1:
            break
        gains /= np.maximum(excess, 1)
    most = np.maximum(np.abs(made), 1)
    return np.concatenate([samples[:begin], np.clip(made + mark, -most, most)], dtype=np.float32)


def _mark(samples: np.ndarray, rate: int, bundle: int, begin: int, gains: np.ndarray) -> np.ndarray:
    """The mark alone, of the samples from `begin` on; `gains [BANDS]` are of its amplitude."""
    hop = 2 * round(rate * HOP_SECONDS)
    window = np.sqrt(_window(2 * hop))  # of analysis and synthesis: overlapping by half, their squares add up to 1
    bands = min(BANDS, (hop + 1 - FIRST) // BINS)
    inner, frames_per_tile = slice(FIRST, FIRST + bands * BINS), FRAMES // 2
    made, before = samples[begin:], samples[max(0, begin - hop) : begin]
    count = -(-(len(made) // hop + 2) // frames_per_tile) * frames_per_tile  # frames that touch it, in whole tiles
    padded = np.pad(samples[begin - len(before) :], (hop - len(before), count * hop - len(made)))
    mark = np.zeros((count + 1, hop), np.float32)  # in pieces of a hop
    for first in range(0, count, BLOCK):
        frames = min(BLOCK, count - first)
        spectra = np.fft.rfft(_frames(padded, 2 * hop, hop, first, frames) * window)[:, inner]
        energy = (spectra.real**2 + spectra.imag**2).reshape(-1, frames_per_tile, bands * BINS).sum(1)
        energy = energy.reshape(-1, bands, BINS).sum(2)
        signs = patterns()[bundle, (first // frames_per_tile + np.arange(len(energy))) % PERIOD, :bands]
        amounts = _amounts(energy) * gains[:bands] * signs
        change = np.zeros((frames, hop + 1), np.complex64)
        change[:, inner] = spectra * amounts.repeat(frames_per_tile, 0).repeat(BINS, 1)
        added = np.fft.irfft(change, 2 * hop) * window
        mark[first : first + frames] += added[:, :hop]
        mark[first + 1 : first + 1 + frames] += added[:, hop:]
    return mark.reshape(-1)[hop : hop + len(made)]


def _excess(made: np.ndarray, mark: np.ndarray, rate: int) -> np.ndarray:
    """How loud the mark is beside what it may be, in the third of an octave where most so of those that a band of it is
    heard in, `[BANDS]`: sound that is silent beside what is loud would be changed by what leaks into it."""
    below, above = THIRDS[:-1] - REACH, THIRDS[1:] + REACH
    shares = np.sqrt(thirds(mark, rate) / (thirds(made, rate) + 1e-12)) / LOUDEST
    middles = (FIRST + BINS * np.arange(BANDS)[:, None] + (BINS - 1) / 2) * BIN
    return np.where((below < middles) & (middles < above), shares, 0).max(1)


def thirds(samples: np.ndarray, rate: int) -> np.ndarray:
    """The energy of sound `[T]` in each third of an octave, `[len(THIRDS) - 1]`."""
    energy = np.zeros(len(THIRDS) + 1)
    for first in range(0, len(samples), CHUNK):
        part = samples[first : first + CHUNK]
        spectrum = np.fft.rfft(part)
        third = np.digitize(np.arange(len(spectrum)) * rate / len(part), THIRDS)
        energy += np.bincount(third, spectrum.real**2 + spectrum.imag**2, len(energy))
    return energy[1:-1]


def _window(size: int) -> np.ndarray:
    return np.hanning(size + 1)[:-1].astype(np.float32)


def _frames(samples: np.ndarray, size: int, hop: int, first: int, count: int) -> np.ndarray:
    """Frames `[count, size]` from number `first` on."""
    return sliding_window_view(samples[first * hop : (first + count - 1) * hop + size], size)[::hop]


def _amounts(energy: np.ndarray) -> np.ndarray:
    """By how much of its amplitude each tile `[tiles, bands]` of that energy changes."""
    energy = energy + 1e-12
    amounts = np.minimum((energy.mean(0) / energy) ** (QUIETER / 2), MOST / STRENGTH)
    sums = np.pad(energy.sum(0), 1, mode="edge")
    room = np.minimum(sums[1:-1], LEAK * np.minimum(sums[:-2], sums[2:]))
    share = np.sqrt((amounts**2 * energy).sum(0) / room)  # 1: the band's mark has STRENGTH
    return np.minimum(amounts * (STRENGTH / share), MOST)


def find(samples: np.ndarray) -> list[Mark]:
    """The marked stretches of sound `float32 [T]` at 16 kHz, in order. Less than 2 s are searched as a whole."""
    return search(samples)[0]


def score(samples: np.ndarray) -> float:
    """The highest correlation that sound `float32 [T]` has anywhere with any pattern, standard deviations."""
    return search(samples)[1]


def search(samples: np.ndarray) -> tuple[list[Mark], float]:
    """What `find` and `score` say of sound."""
    levels = _levels(samples)
    reliefs = [_relief(levels[offset::FRAMES]) for offset in range(FRAMES)]  # for all places where tiles may begin
    found = [_windows(relief) for relief in reliefs]
    scores = np.stack([scores for scores, _ in found])  # [offsets, windows]
    highest, marks = float(scores.max(initial=0)), []
    while scores.size and scores.max() >= THRESHOLD:
        offset, window = np.unravel_index(scores.argmax(), scores.shape)
        bundle, phase = divmod(int(found[offset][1][window]), PERIOD)
        first, last = _extent(reliefs[offset], bundle, phase, int(window) * STEP_TILES)
        seconds = FRAMES * HOP_SECONDS
        start, end = (offset * HOP_SECONDS + tile * seconds for tile in (first, last + 1))
        marks.append(Mark(max(0.0, float(start)), min(float(end), len(samples) / RATE), bundle, float(scores.max())))
        begins = np.arange(scores.shape[1]) * STEP_TILES
        scores[:, (begins <= last) & (begins + WINDOW_TILES > first)] = 0
    return _merged(sorted(marks)), highest


def _merged(marks: list[Mark]) -> list[Mark]:
    """Marks in order, those of one bundle that overlap as one: where a mark is faint, its ends are found too early."""
    result: list[Mark] = []
    for mark in marks:
        if result and mark.bundle == result[-1].bundle and mark.start <= result[-1].end:
            before = result.pop()
            mark = Mark(before.start, max(before.end, mark.end), mark.bundle, max(before.confidence, mark.confidence))
        result.append(mark)
    return result


def _levels(samples: np.ndarray) -> np.ndarray:
    """Log energy of tiles `[n * FRAMES, BANDS]`, one beginning with every frame."""
    hop = round(RATE * HOP_SECONDS)
    count = max(0, len(samples) // hop - 3)
    bands, window = np.zeros((count, BANDS), np.float32), _window(4 * hop)
    for first in range(0, count, BLOCK):
        frames = _frames(samples, 4 * hop, hop, first, min(BLOCK, count - first))
        spectra = np.fft.rfft(frames * window)[:, FIRST : FIRST + BANDS * BINS]
        energy = spectra.real**2 + spectra.imag**2
        bands[first : first + len(energy)] = energy.reshape(len(energy), BANDS, BINS).sum(2)
    if count < FRAMES:
        return bands[:0]
    tiles = sliding_window_view(bands, FRAMES, 0).sum(-1)
    tiles = tiles[: len(tiles) // FRAMES * FRAMES]
    return np.log(tiles + 1e-7 * bands.mean() + 1e-12)


def _relief(levels: np.ndarray) -> np.ndarray:
    """Tiles `[tiles, BANDS]` beside the mean of the 15 around them: three in time, five in frequency."""
    if not len(levels):
        return levels
    return np.clip(levels - _means(np.pad(levels, ((1, 1), (0, 0)), mode="edge")), -1, 1)


def _means(levels: np.ndarray) -> np.ndarray:
    """The mean of the 15 tiles around each, `[..., tiles, BANDS]` of `[..., tiles + 2, BANDS]`."""
    padded = np.pad(levels, [(0, 0)] * (levels.ndim - 1) + [(2, 2)], mode="edge")
    return sliding_window_view(padded, (3, 5), (-2, -1)).mean((-2, -1))


@functools.cache
def _reliefs_of_patterns() -> np.ndarray:
    """What `_relief` makes of the patterns, `float32 [bundles, PERIOD, BANDS]`, with a mean square of 1."""
    relief = patterns() - _means(np.pad(patterns(), ((0, 0), (1, 1), (0, 0)), mode="wrap"))
    return relief / np.sqrt(np.square(relief).mean())


@functools.cache
def _spectra_of_patterns() -> np.ndarray:
    """`complex64 [PERIOD / 2 + 1, BANDS, bundles]`."""
    return np.fft.rfft(_reliefs_of_patterns(), axis=1).transpose(1, 2, 0).astype(np.complex64)


def _windows(relief: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each window of a relief `[tiles, BANDS]` the highest correlation with a pattern, and which pattern at which
    phase that is, as bundle * PERIOD + phase."""
    starts = range(0, max(len(relief) - WINDOW_TILES, 0) + 1, STEP_TILES) if len(relief) else ()
    scores, places = np.zeros(len(starts), np.float32), np.zeros(len(starts), np.int64)
    for n, start in enumerate(starts):
        window = relief[start : start + WINDOW_TILES]
        folded = np.zeros((PERIOD, BANDS), np.float32)
        np.add.at(folded, (start + np.arange(len(window))) % PERIOD, window)
        spectrum = np.fft.rfft(folded, axis=0).astype(np.complex64)
        products = (spectrum.conj()[:, None] @ _spectra_of_patterns())[:, 0]  # [PERIOD / 2 + 1, bundles]
        correlations = np.fft.irfft(products, PERIOD, axis=0).T / np.sqrt(np.square(window).sum() + 1e-9)
        places[n] = correlations.argmax()
        scores[n] = correlations.reshape(-1)[places[n]]
    return scores, places


def _extent(relief: np.ndarray, bundle: int, phase: int, start: int) -> tuple[int, int]:
    """First and last tile of the marked stretch around the window that starts at tile `start`: the ends between which
    the correlation exceeds half of what it is there by most. What it is there is asked again of each stretch found: the
    window may be mostly without a mark."""
    tiles = np.arange(len(relief))
    signal = (relief * _reliefs_of_patterns()[bundle, (tiles + phase) % PERIOD]).sum(1)
    first, last = start, min(start + WINDOW_TILES, len(relief)) - 1
    for _ in range(EXTENDED):
        before = first, last
        total = np.concatenate([[0.0], np.cumsum(signal - signal[first : last + 1].mean() / 2)])
        highest = np.maximum.accumulate(total[::-1])[::-1]  # from here on
        middle = int((highest - np.minimum.accumulate(total)).argmax())
        first = int(total[: middle + 1].argmin())
        last = middle + int(total[middle:].argmax()) - 1
        if (first, last) == before:
            break
    return first, max(first, last)
