"""An inaudible spread-spectrum watermark on generated audio, detectable without the original.

Tiles of 16 ms by 125 Hz become a little louder or quieter, by a pseudo-random pattern of signs that repeats every
1.5 s. So the mark rises and falls with the audio and stays 20 dB below it in every band. Tiles that are quiet for their
band change by more: there the mark's small energy is easiest to find. Each bundle has one of 64 patterns; any of them
identifies this program.

Detection compares every tile with its neighbours (`_relief`) and correlates the result with all patterns at all
offsets. Without a mark, the correlation is about standard normal for any audio, since the signs are random; chance does
not reach THRESHOLD. After Cox et al., "Secure Spread Spectrum Watermarking for Multimedia" (1997), and later patchwork
methods.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

RATE = 16000  # Hz, of audio to be searched
HOP_SECONDS = 0.004  # between spectra, whose windows are four times as long
FRAMES, BINS = 4, 2  # of a tile: 16 ms, 125 Hz
BIN = 62.5  # Hz
FIRST, BANDS = 7, 58  # tiles cover the bins from FIRST on: 410 to 7,660 Hz
PERIOD = 96  # tiles
PROGRAM, PROGRAM_BITS, BUNDLE_BITS = 1, 2, 6
STRENGTH = 0.096  # the mark's amplitude relative to its band's: 21 dB below, at least 20 in every third-octave
QUIET_EXPONENT = 0.7  # a tile's change grows with (energy of the band / of the tile) ** (QUIET_EXPONENT / 2)
MAX_CHANGE = 0.6  # of a tile's amplitude
THIRDS = 100 * 2 ** (np.arange(20) / 3)  # Hz: edges of third-octave bands, up to 8 kHz
MAX_IN_THIRD = 0.09  # the mark's amplitude in a third-octave, relative to the audio's
SPREAD = 2 * BIN  # Hz by which a mark leaks out of its band
_middles = (FIRST + BINS * np.arange(BANDS)[:, None] + (BINS - 1) / 2) * BIN  # Hz, of the bands, `[BANDS, 1]`
LEAKS = (_middles > THIRDS[:-1] - SPREAD) & (_middles < THIRDS[1:] + SPREAD)  # which bands leak into which third-octave
ROUNDS = 4  # of lowering gains where the mark is too loud
NEIGHBOUR_RATIO = 2.0  # a band's mark is limited by this many times the energy of the weaker neighbour
WINDOW_TILES, STEP_TILES = 125, 25  # the search uses windows of 2 s, every 0.4 s
THRESHOLD = 7.0  # standard deviations
MAX_EXTENSIONS = 8  # iterations of the search for a mark's ends
BLOCK_TILES = 8  # marked together
LOOKAHEAD = (BLOCK_TILES + 0.5) * FRAMES * HOP_SECONDS  # s: 136 ms
MEMORY = 4.0  # s: time constant of the energies that limit the mark
DECAY = math.exp(-BLOCK_TILES * FRAMES * HOP_SECONDS / MEMORY)
BLOCK, CHUNK = 4096, 1 << 20  # frames and samples processed together, so that memory hardly grows with length


class Mark(NamedTuple):
    """A marked stretch from `start` to `end` (s): the bundle's id, and the correlation of its best two seconds in
    standard deviations above chance."""

    start: float
    end: float
    bundle: int
    confidence: float


def bundle_id(name: str) -> int:
    """The id of bundles with this name: the first bits of its SHA-256."""
    return hashlib.sha256(name.encode()).digest()[0] >> (8 - BUNDLE_BITS)


def bits(bundle: int) -> str:
    """A mark's message in binary: the program's id, then the bundle's."""
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
    """Marks audio `float32 [T]` at `rate` Hz with a bundle's id from sample `begin` on. Silence stays silent, and what
    was within full scale stays there."""
    marking = Marking(rate, bundle, begin)
    return np.concatenate([marking.push(samples), marking.finish()], dtype=np.float32)


class Marking:
    """Marks a streamed output from sample `begin` on and drops its first `skip` samples; without a bundle's id, it only
    drops them."""

    def __init__(self, rate: int, bundle: int | None, begin: int, skip: int = 0):
        self.rate, self.bundle, self.begin, self.skip = rate, bundle, begin, skip
        self.before = np.zeros(0, np.float32)  # the first `begin` samples, as far as received
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
    """Marks a stream. `push` returns samples with a delay of up to LOOKAHEAD s, `finish` the rest. The samples do not
    depend on how the stream was cut."""

    def __init__(self, rate: int, bundle: int, before: np.ndarray | None = None):
        """`before`: audio `[T]` before the stream; its last seconds set how loud the mark may begin."""
        self.rate, self.bundle, self.hop = rate, bundle, 2 * round(rate * HOP_SECONDS)
        self.window = np.sqrt(_window(2 * self.hop))  # for analysis and synthesis: the squares add up to 1
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
        """Marks the next `size` samples; the frames that begin in them extend one hop further."""
        frames_per_tile, inner = FRAMES // 2, slice(FIRST, FIRST + self.bands * BINS)
        frames = sliding_window_view(sound, 2 * self.hop)[:: self.hop]
        spectra = np.fft.rfft(frames * self.window)[:, inner]
        energy = (spectra.real**2 + spectra.imag**2).reshape(-1, frames_per_tile, self.bands, BINS).sum((1, 3))
        tiles = self.number * BLOCK_TILES + np.arange(BLOCK_TILES)
        amounts = self._amounts(energy)
        change = (amounts * patterns()[self.bundle, tiles % PERIOD, : self.bands]).repeat(frames_per_tile, 0)
        sound, gains = sound[: self.size], np.ones(self.bands)
        heard = DECAY * self.sound + thirds(sound * _window(self.size), self.rate)
        for _ in range(ROUNDS):
            full = np.zeros((len(frames), self.hop + 1), np.complex64)
            full[:, inner] = spectra * (change * gains).repeat(BINS, 1)
            added = np.fft.irfft(full, 2 * self.hop) * self.window
            mark = added[:, : self.hop] + np.concatenate([self.tail[None], added[:-1, self.hop :]])
            marked = DECAY * self.mark + thirds(mark.reshape(-1) * _window(self.size), self.rate)
            excess = _excess(heard, marked)[: self.bands]
            if excess.max() <= 1:
                break
            gains /= np.maximum(excess, 1)
        self.sound, self.mark, self.tail = heard, marked, added[-1, self.hop :]
        self.number += 1
        most = np.maximum(np.abs(sound), 1)
        return np.clip(sound + mark.reshape(-1), -most, most).astype(np.float32)

    def _amounts(self, energy: np.ndarray) -> np.ndarray:
        """Each tile's relative change in amplitude, `[tiles, bands]`, from the energies."""
        energy = energy + 1e-12
        self.tiles, self.energy = DECAY * self.tiles + len(energy), DECAY * self.energy + energy.sum(0)
        amounts = np.minimum((self.energy / self.tiles / energy) ** (QUIET_EXPONENT / 2), MAX_CHANGE / STRENGTH)
        sums = np.pad(self.energy, 1, mode="edge")
        room = np.minimum(sums[1:-1], NEIGHBOUR_RATIO * np.minimum(sums[:-2], sums[2:]))
        self.spent = DECAY * self.spent + (amounts**2 * energy).sum(0)
        return np.minimum(amounts * STRENGTH * np.sqrt(room / self.spent), MAX_CHANGE)


def _excess(sound: np.ndarray, mark: np.ndarray) -> np.ndarray:
    """The factor by which the mark exceeds its limit, per band: the highest ratio among the third-octaves that the band
    leaks into, `[BANDS]`. Otherwise leakage would change a silent third-octave beside a loud one."""
    shares = np.sqrt(mark / (sound + 1e-12)) / MAX_IN_THIRD
    return np.where(LEAKS, shares, 0).max(1)


def thirds(samples: np.ndarray, rate: int) -> np.ndarray:
    """Energy of audio `[T]` in each third-octave, `[len(THIRDS) - 1]`."""
    energy = np.zeros(len(THIRDS) + 1)
    for first in range(0, len(samples), CHUNK):
        part = samples[first : first + CHUNK]
        spectrum = np.fft.rfft(part)
        energy += np.bincount(_third(len(part), rate), spectrum.real**2 + spectrum.imag**2, len(energy))
    return energy[1:-1]


@functools.lru_cache(maxsize=4)  # every block and chunk but the last has the same size
def _third(size: int, rate: int) -> np.ndarray:
    """The number of each frequency's third-octave in the spectrum of `size` samples, counted from 1."""
    return np.digitize(np.arange(size // 2 + 1) * rate / size, THIRDS)


@functools.lru_cache(maxsize=4)
def _window(size: int) -> np.ndarray:
    return np.hanning(size + 1)[:-1].astype(np.float32)


def _frames(samples: np.ndarray, size: int, hop: int, first: int, count: int) -> np.ndarray:
    """`count` frames of `size` samples, `[count, size]`, from number `first` on."""
    return sliding_window_view(samples[first * hop : (first + count - 1) * hop + size], size)[::hop]


def find(samples: np.ndarray) -> list[Mark]:
    """Finds the marked stretches of audio `float32 [T]` at 16 kHz, in order. Less than 2 s are searched as a whole."""
    return search(samples)[0]


def score(samples: np.ndarray) -> float:
    """The highest correlation of audio `float32 [T]` with any pattern at any offset, in standard deviations."""
    return search(samples)[1]


def search(samples: np.ndarray) -> tuple[list[Mark], float]:
    """The results of `find` and `score` together."""
    levels = _levels(samples)
    reliefs = [_relief(levels[offset::FRAMES]) for offset in range(FRAMES)]  # for every offset of the tiles
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
    """Merges overlapping marks of one bundle: where a mark is faint, the search ends a stretch too early."""
    result: list[Mark] = []
    for mark in marks:
        if result and mark.bundle == result[-1].bundle and mark.start <= result[-1].end:
            before = result.pop()
            mark = Mark(before.start, max(before.end, mark.end), mark.bundle, max(before.confidence, mark.confidence))
        result.append(mark)
    return result


def _levels(samples: np.ndarray) -> np.ndarray:
    """Log energies of tiles, one for every frame that a tile may begin with, `[n * FRAMES, BANDS]`."""
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
    """Tiles `[tiles, BANDS]` minus the mean of the 15 around each: three in time, five in frequency."""
    if not len(levels):
        return levels
    return np.clip(levels - _means(np.pad(levels, ((1, 1), (0, 0)), mode="edge")), -1, 1)


def _means(levels: np.ndarray) -> np.ndarray:
    """The mean of the 15 tiles around each, `[..., tiles + 2, BANDS]` -> `[..., tiles, BANDS]`."""
    padded = np.pad(levels, [(0, 0)] * (levels.ndim - 1) + [(2, 2)], mode="edge")
    return sliding_window_view(padded, (3, 5), (-2, -1)).mean((-2, -1))


@functools.cache
def _reliefs_of_patterns() -> np.ndarray:
    """`_relief` of the patterns, `float32 [bundles, PERIOD, BANDS]`, with a mean square of 1."""
    relief = patterns() - _means(np.pad(patterns(), ((0, 0), (1, 1), (0, 0)), mode="wrap"))
    return relief / np.sqrt(np.square(relief).mean())


@functools.cache
def _spectra_of_patterns() -> np.ndarray:
    """`complex64 [PERIOD / 2 + 1, BANDS, bundles]`."""
    return np.fft.rfft(_reliefs_of_patterns(), axis=1).transpose(1, 2, 0).astype(np.complex64)


def _windows(relief: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest correlation in each window of a relief `[tiles, BANDS]`, and its pattern and phase, encoded as
    bundle * PERIOD + phase."""
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
    """First and last tile of the marked stretch around the window that starts at tile `start`: the ends that maximise
    the sum of correlation minus half its mean. The mean is recomputed over each stretch found, since the window may be
    mostly unmarked."""
    tiles = np.arange(len(relief))
    signal = (relief * _reliefs_of_patterns()[bundle, (tiles + phase) % PERIOD]).sum(1)
    first, last = start, min(start + WINDOW_TILES, len(relief)) - 1
    for _ in range(MAX_EXTENSIONS):
        before = first, last
        total = np.concatenate([[0.0], np.cumsum(signal - signal[first : last + 1].mean() / 2)])
        highest = np.maximum.accumulate(total[::-1])[::-1]  # from here on
        middle = int((highest - np.minimum.accumulate(total)).argmax())
        first = int(total[: middle + 1].argmin())
        last = middle + int(total[middle:].argmax()) - 1
        if (first, last) == before:
            break
    return first, max(first, last)
