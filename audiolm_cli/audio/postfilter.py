"""Post-processing of generated audio: a high-pass filter, a level control and a limiter.

All three work on successive frames of 5 ms and carry state. The result depends neither on how the audio is cut into
blocks, nor on anything more than 15 ms ahead: a stream gets the same samples as a whole file, to the last bit. Audio
is `float32 [T]`, frames are `float64 [n, N]`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from audiolm_cli.config import OutputConfig

PIECE_SECONDS = 10  # of a whole file filtered at a time: memory hardly grows with length
FRAMES = 200  # a second
ORDER, STOPBAND = 9, 36.0  # of the high-pass filter; dB of attenuation below its corner / 1.15
ACTIVE = 15.9  # dB from the active level down to the threshold of activity (ITU-T P.56)
ENVELOPE, HANGOVER = 0.03, 0.2  # s: smoothing, and how long activity lasts (P.56)
SILENT = 1e-7  # mean square, -70 dBFS: anything below is never active
INAUDIBLE = 1e-9  # mean square, -90 dBFS: no more than rounding noise
MEMORY = 2.5  # s of activity that the output's level averages over
PRIOR = 0.6  # s of activity that the expected level counts for at the beginning
RISE, FALL = 6.0, 12.0  # dB/s: limits of the gain's rate of change
BOOST, CUT = 9.0, 18.0  # dB: limits of the gain
MARGIN = 10.0  # dB by which an output may exceed its source at any time
BEHIND, AHEAD = 0.15, 0.04  # s of the source that count around a frame; a semantic token saw that much
OPENING = 0.02  # s: time constant with which that gain recovers
ATTACK, RELEASE = 2, 0.08  # the limiter's look-ahead in frames; s
AUDIBLE = 20.0  # Hz
CLIPPED = 0.02  # `overload` of a recording that was clipped
RUMBLE = 0.05  # share of a recording's energy; 99 of 100 clean ones have less than 0.04 below 63 Hz
CEILING = 10 ** (-1 / 20)  # of the limiter, leaving headroom for a watermark

# share of a difference that remains after a frame, or that has decayed
FORGETTING = math.exp(-1 / (MEMORY * FRAMES))
SMOOTHING, OPENED, RELEASING = (1 - math.exp(-1 / (seconds * FRAMES)) for seconds in (ENVELOPE, OPENING, RELEASE))


class Filter(Protocol):
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Filters the next frames `[n, N]`; with a look-ahead of k frames, returns those from k frames before."""


class PostFilter:
    """A chain of filters. `push` returns samples with a delay of up to 5 ms plus the look-ahead, `finish` the rest, so
    as many samples come out as went in."""

    def __init__(self, rate: int, filters: Sequence[Filter], lookahead: int = 0):
        """`lookahead`: frames, summed over all filters."""
        self.filters, self.size = filters, frame_size(rate)
        self.rest = np.zeros(0, np.float32)
        self.skip, self.owed = lookahead * self.size, 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        self.owed += len(samples)
        return self._through(samples)

    def finish(self) -> np.ndarray:
        return self._through(np.zeros(self.skip + self.owed + self.size, np.float32))

    def whole(self, samples: np.ndarray) -> np.ndarray:
        """Filters a whole file at once."""
        piece = PIECE_SECONDS * FRAMES * self.size
        done = [self.push(samples[start : start + piece]) for start in range(0, len(samples), piece)]
        return np.concatenate([*done, self.finish()])

    def _through(self, samples: np.ndarray) -> np.ndarray:
        samples = np.concatenate([self.rest, samples])
        whole = len(samples) // self.size * self.size
        self.rest, frames = samples[whole:], samples[:whole].astype(np.float64).reshape(-1, self.size)
        for filter in self.filters:
            frames = filter(frames)
        out = frames.astype(np.float32).reshape(-1)[self.skip :][: self.owed]
        self.skip = max(0, self.skip - whole)
        self.owed -= len(out)
        return out


def chain(
    config: OutputConfig, rate: int, prompt: np.ndarray | None = None, begin: int = 0, follow: bool = False
) -> PostFilter:
    """The filters of an output. prompt: what it continues, its first `begin` samples being the prompt's end decoded
    again, or what it resynthesises (`follow`); None for generation from nothing."""
    filters: list[Filter] = [HighPass(rate, config.high_pass)] if config.high_pass else []
    if prompt is not None:
        heard = powers(prompt, rate, config.high_pass)
        level = active_level(heard) if config.level_range else 0.0
        filters.append(LevelControl(level, config.level_range, begin // frame_size(rate), heard if follow else None))
    return PostFilter(rate, [*filters, Limiter()], ATTACK)


def without_rumble(samples: np.ndarray, rate: int, corner: float) -> np.ndarray:
    """Removes what lies below `corner` Hz (0: nothing) from a recording, if that is more than RUMBLE of its energy.

    Less is left in, as the models were trained on as much: without it, continuations lose some of the voice. The filter
    runs forwards and backwards, since one pass shifts phases above the corner, which the codec encodes.
    """
    if not corner:
        return samples
    forwards = np.pad(high_passed(samples, rate, corner), (0, 1))  # a zero, so that the backward pass begins at rest
    clean = np.ascontiguousarray(high_passed(forwards[::-1], rate, corner)[:0:-1])
    energy, below = (float(np.square(part, dtype=np.float64).sum()) for part in (samples, samples - clean))
    return clean if below > RUMBLE * energy else samples


def high_passed(samples: np.ndarray, rate: int, corner: float) -> np.ndarray:
    """A recording through the outputs' high-pass filter, including its phase shifts."""
    return PostFilter(rate, [HighPass(rate, corner)]).whole(samples) if corner else samples


def silent(samples: np.ndarray, rate: int) -> bool:
    """Whether audio has no active frame."""
    return active_level(powers(samples, rate, AUDIBLE)) == 0


def audible(samples: np.ndarray, rate: int) -> np.ndarray:
    """Which frames are audible, `bool [frames]`: at most 50 dB below the loudest, and not silent."""
    power = powers(samples, rate, AUDIBLE)
    return power > max(power.max(initial=0) / 10**5, SILENT)


def overload(samples: np.ndarray) -> float:
    """The share of samples within 2 % of the peak: about a thousandth in audio without clipping."""
    peaks = np.abs(samples)
    return float((peaks >= max(0.98 * peaks.max(initial=0), 1e-3)).mean()) if len(samples) else 0.0


def limited(samples: np.ndarray, rate: int) -> np.ndarray:
    """Audio limited to full scale."""
    return PostFilter(rate, [Limiter(1.0)], ATTACK).whole(samples)


def frame_size(rate: int) -> int:
    return max(1, round(rate / FRAMES))


class HighPass:
    """Attenuates what lies below `corner` Hz (-3 dB there): a Chebyshev type II filter."""

    def __init__(self, rate: int, corner: float):
        self.matrix = _high_pass(rate, corner, frame_size(rate))
        self.signal, self.begun = np.zeros(len(self.matrix)), False  # a frame, then the state

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        size, out = frames.shape[1], np.empty_like(frames)
        if len(frames) and not self.begun:  # start in the first sample's steady state: an offset makes no thump
            made, kept = self.matrix[size:, :size].sum(1), self.matrix[size:, size:]
            self.signal[size:] = np.linalg.solve(np.eye(len(kept)) - kept, made * frames[0, 0])
            self.begun = True
        for n, frame in enumerate(frames):  # one product for all could depend on their number
            self.signal[:size] = frame
            self.signal = self.matrix @ self.signal
            out[n] = self.signal[:size]
        return out


@functools.cache
def _high_pass(rate: int, corner: float, size: int) -> np.ndarray:
    """The filter as a matrix `[size + states] * 2` that maps a frame and the state to the filtered frame and the next
    state."""
    loss = math.sqrt(10 ** (STOPBAND / 10) - 1)
    angles = (2 * np.arange(ORDER // 2 + 1) + 1) * np.pi / (2 * ORDER)  # the last pole is real, its zero at 0 Hz
    bend = math.asinh(loss) / ORDER
    edge = math.tan(math.pi * corner / rate) / math.cosh(math.acosh(loss) / ORDER)  # of the stop band
    poles = edge * (-math.sinh(bend) * np.sin(angles) + 1j * math.cosh(bend) * np.cos(angles))
    zeros = edge * 1j * np.cos(angles)
    total = size + 2 * len(angles)
    matrix = np.eye(total)
    for n, (pole, zero) in enumerate(zip((1 + poles) / (1 - poles), (1 + zeros) / (1 - zeros), strict=True)):
        b, a = (np.array([1.0, -2 * place.real, abs(place) ** 2]) for place in (zero, pole))
        if n == len(angles) - 1:
            b, a = np.array([1.0, -1.0, 0.0]), np.array([1.0, -pole.real, 0.0])
        b *= (a * [1, -1, 1]).sum() / (b * [1, -1, 1]).sum()  # unity gain at half the rate
        section = np.eye(total)  # transposed direct form II: every row is a linear combination
        first, second = size + 2 * n, size + 2 * n + 1
        for t in range(size):
            x = section[t].copy()
            y = section[t] = b[0] * x + section[first]
            section[first] = b[1] * x - a[1] * y + section[second]
            section[second] = b[2] * x - a[2] * y
        matrix = section @ matrix
    return matrix


class ActiveLevel:
    """A running active speech level (mean square during activity, after ITU-T P.56), frame by frame; `value` starts as
    the expected level."""

    def __init__(self, value: float):
        self.value, self.envelope, self.active = value, 0.0, 0
        self._sum, self._time = value * PRIOR, PRIOR

    def __call__(self, power: float) -> bool:
        """Updates with a frame's mean square; returns whether there is activity."""
        self.envelope += (power - self.envelope) * SMOOTHING
        if self.envelope > max(self.value / 10 ** (ACTIVE / 10), SILENT):
            self.active = round(HANGOVER * FRAMES)
        elif self.active:
            self.active -= 1
        if not self.active:
            return False
        self._sum = self._sum * FORGETTING + power / FRAMES
        self._time = self._time * FORGETTING + 1 / FRAMES
        self.value = self._sum / self._time
        return True


def powers(samples: np.ndarray, rate: int, corner: float = 0.0) -> np.ndarray:
    """The mean square of each frame of audio without what lies below `corner` Hz, `float64 [frames]`."""
    size, samples = frame_size(rate), high_passed(samples, rate, corner)
    pieces = np.array_split(np.pad(samples, (0, -len(samples) % size)).reshape(-1, size), len(samples) // 100000 + 1)
    return np.concatenate([np.square(piece, dtype=np.float64).mean(1) for piece in pieces])


def active_level(power: np.ndarray) -> float:
    """The active speech level (mean square) of audio with these `powers`; 0 for silence."""
    envelope, smooth = np.empty(len(power)), 0.0
    for n, value in enumerate(power.tolist()):
        smooth += (value - smooth) * SMOOTHING
        envelope[n] = smooth
    level, hangover = 0.0, round(HANGOVER * FRAMES)
    for _ in range(30):  # until level and threshold agree
        loud = envelope > max(level / 10 ** (ACTIVE / 10), SILENT)
        last = np.maximum.accumulate(np.where(loud, np.arange(len(power)), -hangover))
        active = np.arange(len(power)) - last < hangover
        before, level = level, float(power[active].mean()) if active.any() else 0.0
        if level == before:
            break
    return level


class LevelControl:
    """Keeps an output's level within `stray` dB of that of the prompt, or of the source in a resynthesis.

    It averages over seconds of activity and ignores pauses, so it lifts neither words nor the noise between them. A
    resynthesis is never much louder than its source, and silent where the source is silent.
    """

    def __init__(self, level: float, stray: float, begin: int = 0, follows: np.ndarray | None = None):
        """`level`: mean square, 0 if there is none to keep. Frames before number `begin` belong to the prompt.
        `follows`: the source's `powers`, for a resynthesis."""
        self.level, self.stray, self.begin, self.number = level, stray, begin, 0
        self.heard, self.followed = ActiveLevel(level), ActiveLevel(level)
        self.gain, self.opening = 0.0, 1.0  # dB, factor
        self.last: float | None = None  # factor at the end of the last frame
        self.follows = [] if follows is None else follows.tolist()
        if follows is not None:
            follows = np.where(follows < INAUDIBLE, 0, follows)
            behind, ahead = round(BEHIND * FRAMES), round(AHEAD * FRAMES)
            windows = np.lib.stride_tricks.sliding_window_view(np.pad(follows, (behind, ahead)), behind + 1 + ahead)
            self.most = (windows.max(1) * 10 ** (MARGIN / 10)).tolist()

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        factors = [self._factor(power) for power in np.square(frames).mean(1).tolist()]
        if not factors:
            return frames
        before = factors[0] if self.last is None else self.last
        self.last = factors[-1]
        return frames * ramps([before, *factors], frames.shape[1])

    def _factor(self, power: float) -> float:
        """The gain at the end of the next frame, whose mean square is `power`."""
        number, self.number = self.number, self.number + 1
        if number < self.begin or not self.level:
            self.heard.envelope += (power - self.heard.envelope) * SMOOTHING
        else:
            self._follow(power, number)
        factor = 10 ** (self.gain / 20)
        if self.follows:
            factor *= self._open(max(power, self.heard.envelope) * factor * factor, number)
        return factor

    def _follow(self, power: float, number: int) -> None:
        if number < len(self.follows):
            self.followed(self.follows[number])
        if not self.heard(power):
            return
        excess = 10 * math.log10(self.heard.value / self.followed.value)
        wanted = min(max(min(max(excess, -self.stray), self.stray) - excess, -CUT), BOOST)
        self.gain += min(max(wanted - self.gain, -FALL / FRAMES), RISE / FRAMES)

    def _open(self, power: float, number: int) -> float:
        most = self.most[min(number, len(self.most) - 1)]
        wanted = math.sqrt(most / power) if power > most else 1.0
        self.opening = min(wanted, self.opening + (1 - self.opening) * OPENED)
        return self.opening


class Limiter:
    """Keeps samples within `ceiling` by a gain that falls before a peak and recovers slowly after it. Samples within it
    pass unchanged, ATTACK frames later."""

    def __init__(self, ceiling: float = CEILING):
        self.ceiling, self.last, self.held = ceiling, 1.0, np.zeros((ATTACK, 0))
        self.needed = [1.0] * ATTACK  # gains of the held frames

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        if self.held.shape[1] == 0:
            self.held = np.zeros((ATTACK, frames.shape[1]))
        peaks = np.abs(frames).max(1)
        self.needed += np.minimum(1, self.ceiling / np.maximum(peaks, self.ceiling)).tolist()
        held, factors = np.concatenate([self.held, frames]), [self.last]
        for n in range(len(frames)):
            now, *later = self.needed[n : n + ATTACK + 1]
            falling = [gain + (1 - gain) * k / ATTACK for k, gain in enumerate(later)]
            factors.append(min(now, *falling, factors[-1] + (1 - factors[-1]) * RELEASING))
        self.last, self.held, self.needed = factors[-1], held[len(frames) :], self.needed[len(frames) :]
        return held[: len(frames)] * ramps(factors, frames.shape[1])


def ramps(factors: Sequence[float], size: int) -> np.ndarray:
    """Gains `[n, size]` that ramp from each of n + 1 factors to the next."""
    nodes = np.array(factors)[:, None]
    return nodes[:-1] + (nodes[1:] - nodes[:-1]) * (np.arange(1, size + 1) / size)
