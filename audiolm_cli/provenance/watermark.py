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
import math
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
STRENGTH = 0.096  # amplitude of the mark, of a band's: about 21 dB below it, in any third of an octave 20 at least
QUIETER = 0.7  # quiet tiles change by more: by (energy of the band / of the tile) ** (QUIETER / 2)
MOST = 0.6  # by which a tile's amplitude changes at most
THIRDS = 100 * 2 ** (np.arange(20) / 3)  # Hz: edges of thirds of an octave, up to 8 kHz
LOUDEST = 0.09  # amplitude of the mark in each, of the sound's
REACH = 2 * BIN  # as far beside its band a mark is heard
ROUNDS = 4  # of making what is too loud quieter
LEAK = 2.0  # a band's mark is heard in those beside it: it has room for so many times their energy at most
WINDOW_TILES, STEP_TILES = 125, 25  # 2 s of sound are searched at a time, every 0.4 s
THRESHOLD = 7.0  # standard deviations
EXTENDED = 8  # times that the ends of a mark are looked for at most
BLOCK_TILES = 8  # marked at a time
LOOKAHEAD = (BLOCK_TILES + 0.5) * FRAMES * HOP_SECONDS  # s: 136 ms
MEMORY = 4.0  # s of the sound before that count for the loudness of the mark
KEPT = math.exp(-BLOCK_TILES * FRAMES * HOP_SECONDS / MEMORY)
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
    marking = Marking(rate, bundle, begin)
    return np.concatenate([marking.push(samples), marking.finish()], dtype=np.float32)


class Marking:
    """An output that comes piece by piece, marked from sample `begin` on, or, without a bundle's id, as it is; without
    its first `skip` samples."""

    def __init__(self, rate: int, bundle: int | None, begin: int, skip: int = 0):
        self.rate, self.bundle, self.begin, self.skip = rate, bundle, begin, skip
        self.before = np.zeros(0, np.float32)  # the first `begin` samples, as far as they are there
        self.embedder = Embedder(rate, bundle) if bundle is not None and begin == 0 else None

    def push(self, samples: np.ndarray) -> np.ndarray:
        if self.bundle is None:
            return self._left(samples)
        first = samples[:0]
        if self.embedder is None:
            first, samples = samples[: self.begin - len(self.before)], samples[self.begin - len(self.before) :]
            self.before = np.concatenate([self.before, first])
            if len(self.before) < self.begin:
                return self._left(first)
            self.embedder = Embedder(self.rate, self.bundle, self.before)
        return self._left(np.concatenate([first, self.embedder.push(samples)]))

    def finish(self) -> np.ndarray:
        return self._left(self.embedder.finish()) if self.embedder else np.zeros(0, np.float32)

    def _left(self, samples: np.ndarray) -> np.ndarray:
        skipped = min(self.skip, len(samples))
        self.skip -= skipped
        return samples[skipped:]


class Embedder:
    """Marks sound as it comes. What `push` returns lags by up to LOOKAHEAD s; `finish` returns the rest. The samples do
    not depend on how the sound was cut into pieces."""

    def __init__(self, rate: int, bundle: int, before: np.ndarray | None = None):
        """`before`: sound `[T]` that this one follows; its end counts where the mark is to be as loud as the ear has
        grown used to."""
        self.rate, self.bundle, self.hop = rate, bundle, 2 * round(rate * HOP_SECONDS)
        self.window = np.sqrt(_window(2 * self.hop))  # of analysis and synthesis: their squares add up to 1
        self.bands = min(BANDS, (self.hop + 1 - FIRST) // BINS)
        self.size = BLOCK_TILES * FRAMES // 2 * self.hop
        self.tiles, self.energy, self.spent = 0.0, np.zeros(self.bands), np.zeros(self.bands)
        self.sound, self.mark = np.zeros(len(THIRDS) - 1), np.zeros(len(THIRDS) - 1)
        self.tail = np.zeros(self.hop)
        before = np.zeros(0, np.float32) if before is None else before
        self.number = -min(len(before), round(MEMORY * rate)) // self.size  # of the next block
        self.skip = self.hop - self.number * self.size
        self.rest, self.owed = np.concatenate([np.zeros(self.skip, np.float32), before])[-self.skip :], 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        self.owed += len(samples)
        return self._through(samples)

    def finish(self) -> np.ndarray:
        return self._through(np.zeros(self.size + self.hop, np.float32))

    def _through(self, samples: np.ndarray) -> np.ndarray:
        sound, made = np.concatenate([self.rest, samples]), []
        while len(sound) >= self.size + self.hop:
            made.append(self._block(sound[: self.size + self.hop]))
            sound = sound[self.size :]
        self.rest, whole = sound, sum(map(len, made))
        out = np.concatenate([np.zeros(0, np.float32), *made])[self.skip :][: self.owed]
        self.skip = max(0, self.skip - whole)
        self.owed -= len(out)
        return out

    def _block(self, sound: np.ndarray) -> np.ndarray:
        """The next `size` samples with their mark; the frames that begin in them reach a hop farther."""
        frames_per_tile, inner = FRAMES // 2, slice(FIRST, FIRST + self.bands * BINS)
        frames = sliding_window_view(sound, 2 * self.hop)[:: self.hop]
        spectra = np.fft.rfft(frames * self.window)[:, inner]
        energy = (spectra.real**2 + spectra.imag**2).reshape(-1, frames_per_tile, self.bands, BINS).sum((1, 3))
        tiles = self.number * BLOCK_TILES + np.arange(BLOCK_TILES)
        amounts = self._amounts(energy)
        change = (amounts * patterns()[self.bundle, tiles % PERIOD, : self.bands]).repeat(frames_per_tile, 0)
        sound, gains = sound[: self.size], np.ones(self.bands)
        heard = KEPT * self.sound + thirds(sound * _window(self.size), self.rate)
        for _ in range(ROUNDS):
            full = np.zeros((len(frames), self.hop + 1), np.complex64)
            full[:, inner] = spectra * (change * gains).repeat(BINS, 1)
            added = np.fft.irfft(full, 2 * self.hop) * self.window
            mark = added[:, : self.hop] + np.concatenate([self.tail[None], added[:-1, self.hop :]])
            marked = KEPT * self.mark + thirds(mark.reshape(-1) * _window(self.size), self.rate)
            excess = _excess(heard, marked)[: self.bands]
            if excess.max() <= 1:
                break
            gains /= np.maximum(excess, 1)
        self.sound, self.mark, self.tail = heard, marked, added[-1, self.hop :]
        self.number += 1
        most = np.maximum(np.abs(sound), 1)
        return np.clip(sound + mark.reshape(-1), -most, most).astype(np.float32)

    def _amounts(self, energy: np.ndarray) -> np.ndarray:
        """By how much of its amplitude each tile `[tiles, bands]` of that energy changes."""
        energy = energy + 1e-12
        self.tiles, self.energy = KEPT * self.tiles + len(energy), KEPT * self.energy + energy.sum(0)
        amounts = np.minimum((self.energy / self.tiles / energy) ** (QUIETER / 2), MOST / STRENGTH)
        sums = np.pad(self.energy, 1, mode="edge")
        room = np.minimum(sums[1:-1], LEAK * np.minimum(sums[:-2], sums[2:]))
        self.spent = KEPT * self.spent + (amounts**2 * energy).sum(0)
        return np.minimum(amounts * STRENGTH * np.sqrt(room / self.spent), MOST)


def _excess(sound: np.ndarray, mark: np.ndarray) -> np.ndarray:
    """How loud the mark is beside what it may be, in the third of an octave where most so of those that a band of it is
    heard in, `[BANDS]`: sound that is silent beside what is loud would be changed by what leaks into it."""
    below, above = THIRDS[:-1] - REACH, THIRDS[1:] + REACH
    shares = np.sqrt(mark / (sound + 1e-12)) / LOUDEST
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
