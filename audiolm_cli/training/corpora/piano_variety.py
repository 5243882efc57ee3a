"""Variety for a corpus of piano music: other keys and tempi of a piece, and other pianos, rooms and microphones.

What is played becomes what somebody might have recorded at home: on a piano that drifts, softer, brighter or upright,
in a room with noise, from a phone with a narrow band, through MP3. Everything is drawn from the generator that is
given. Audio is `float32 [T]` at 16 kHz and is changed in blocks, as pieces may last an hour.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.augmentation import equaliser, noise, transcoded
from audiolm_cli.training.corpora.piano_synth import Note, convolved

TAPS = 1023  # of filters, linear in phase: 16 Hz
SINC, PHASES, BLOCK = 16, 512, 2**16  # taps, positions between two samples, and samples at once, of resampling
KNOT = 4.0  # s between the random pitches that a drift goes through
DRIFT_STEP = 160  # samples between the rates that times are computed from
TURN = (800.0, 2000.0)  # Hz, between which what touch changes begins
LEVEL_STEP = 0.05  # s between levels
NOISE_PERIOD = 2**20  # samples, 66 s, after which noise is the same again
MP3_DELAY = 1105  # samples: encoder 576, decoder 529
MP3_RATES = (8.0, 160.0)  # kbit/s at 16 kHz, of libsndfile's highest and lowest compression


@dataclass(frozen=True)
class Variety:
    """How often and how strongly. Chances are shares of all pieces."""

    semitones: int = 5  # up or down: a fourth
    tempo: tuple[float, float] = (0.85, 1.15)
    drift: float = 8.0  # cents, standard deviation of the pitch along the piece
    drift_chance: float = 0.3
    touch: tuple[float, float] = (-12.0, 4.0)  # dB at medium level above TURN: soft to bright
    response: tuple[float, float] = (0.0, 0.4)  # dB more of it for each dB louder
    touch_chance: float = 0.5
    equaliser: float = 3.0  # dB, standard deviation
    upright_chance: float = 0.3
    noise: tuple[float, float] = (25.0, 55.0)  # dB below the music
    noise_chance: float = 0.4
    band: tuple[float, float] = (4000.0, 8000.0)  # Hz, of a low-pass: half the rate of sources of 8 to 16 kHz
    band_chance: float = 0.35
    mp3: tuple[float, float] = (24.0, 64.0)  # kbit/s
    mp3_chance: float = 0.25

    @property
    def identity(self) -> str:
        """Eight hexadecimal digits that tell settings apart."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]


def performed(notes: Sequence[Note], random: np.random.Generator, how: Variety, keys: range) -> tuple[Note, ...]:
    """The same notes in another key and tempo, as far as all stay within `keys`; the first onset stays."""
    low, high = min(note.key for note in notes), max(note.key for note in notes)
    moves = [n for n in range(-how.semitones, how.semitones + 1) if low + n in keys and high + n in keys]
    move, tempo, first = int(random.choice(moves)), random.uniform(*how.tempo), notes[0].onset
    return tuple(
        Note(first + (note.onset - first) / tempo, first + (note.end - first) / tempo, note.key + move, note.velocity)
        for note in notes
    )


def recorded(played: np.ndarray, response: np.ndarray, random: np.random.Generator, how: Variety) -> np.ndarray:
    """What is played, in a room with that impulse `response`, as recorded: the same length."""
    drift, touch, noisy, mp3 = random.random(4)
    sound = drifted(played, drift_of(len(played), random, how.drift)) if drift < how.drift_chance else played
    if touch < how.touch_chance:
        sound = touched(sound, random.uniform(*how.touch), random.uniform(*how.response))
    sound = filtered(convolved(sound, response), tone(random, how))
    if noisy < how.noise_chance:
        loud = np.sqrt(np.mean(np.square(sound), dtype=float)) * 10 ** (-random.uniform(*how.noise) / 20)
        sound += np.resize(noise(NOISE_PERIOD, random).astype(np.float32), len(sound)) * np.float32(loud)
    return through_mp3(sound, random.uniform(*how.mp3)) if mp3 < how.mp3_chance else sound


def heard(notes: Sequence[Note], samples: int, random: np.random.Generator, how: Variety) -> tuple[Note, ...]:
    """The notes of what is played as they are heard in what `recorded` makes of it, given the generator as it gets it:
    a drift moves their times."""
    if random.random(4)[0] >= how.drift_chance:
        return tuple(notes)
    rates = rates_of(np.arange(0, samples, DRIFT_STEP), drift_of(samples, random, how.drift))
    played = np.concatenate([[0.0], rates.cumsum()]) * DRIFT_STEP / RATE  # s of what is played, every DRIFT_STEP
    times = np.interp([(note.onset, note.end) for note in notes], played, np.arange(len(played)) * DRIFT_STEP / RATE)
    return tuple(
        note._replace(onset=float(onset), end=float(end)) for note, (onset, end) in zip(notes, times, strict=True)
    )


def drift_of(samples: int, random: np.random.Generator, cents: float) -> np.ndarray:
    """A pitch that goes slowly up and down, with that standard deviation: cents, every KNOT."""
    return random.normal(0, cents, -(-round(samples + KNOT * RATE) // round(KNOT * RATE)))


def rates_of(places: np.ndarray, pitches: np.ndarray) -> np.ndarray:
    """The rates of a drift at samples of what it makes."""
    rates: np.ndarray = 2 ** (np.interp(places, np.arange(len(pitches)) * KNOT * RATE, pitches) / 1200)
    return rates


def drifted(samples: np.ndarray, pitches: np.ndarray) -> np.ndarray:
    """Resamples to the pitches of `drift_of`; the tempo goes with them."""
    count = len(samples)
    offsets = np.arange(SINC) - SINC // 2 + 1
    between = offsets - np.arange(PHASES + 1)[:, None] / PHASES  # [PHASES + 1, SINC], samples
    weights = np.sinc(between) * np.cos(np.pi * between / (SINC + 2)) ** 2
    table = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    padded = np.pad(samples, SINC)
    out, at = np.empty(count, np.float32), 0.0
    for start in range(0, count, BLOCK):
        rates = rates_of(np.arange(start, min(start + BLOCK, count)), pitches)
        places = np.minimum(at + np.cumsum(rates) - rates[0], count - 1)
        at += float(rates.sum())
        whole = places.astype(int)
        phase = np.round((places - whole) * PHASES).astype(int)
        out[start : start + len(places)] = (padded[whole[:, None] + offsets + SINC] * table[phase]).sum(1)
    return out


def touched(samples: np.ndarray, bright: float, response: float) -> np.ndarray:
    """Makes what lies above TURN louder by `bright` dB, and by `response` dB more for each dB above the median
    level: as softer or harder hammers do."""
    frequencies = np.linspace(0, RATE / 2, TAPS // 2 + 1)
    low = filtered(samples, -80 * np.clip((frequencies - TURN[0]) / (TURN[1] - TURN[0]), 0, 1))
    step = round(LEVEL_STEP * RATE)
    frames = np.pad(samples, (0, -len(samples) % step)).reshape(-1, step)
    levels = 10 * np.log10(np.square(frames).mean(1) + 1e-9)
    audible = levels[levels > levels.max() - 50]
    gains = np.clip(bright + response * (levels - np.median(audible)), -20, 8)
    centres = (np.arange(len(gains)) + 0.5) * step
    factor = 10 ** (np.interp(np.arange(len(samples)), centres, gains) / 20)
    return low + (samples - low) * factor.astype(np.float32)


def tone(random: np.random.Generator, how: Variety) -> np.ndarray:
    """The gains of piano, microphone and format, dB `[TAPS // 2 + 1]` from 0 Hz to half the rate."""
    frequencies = np.linspace(0, RATE / 2, TAPS // 2 + 1)
    gains = equaliser(len(frequencies), random, how.equaliser)
    if random.random() < how.upright_chance:
        gains += upright(frequencies, random)
    if random.random() < how.band_chance:
        gains -= 100 * np.clip((frequencies / random.uniform(*how.band) - 0.92) / 0.08, 0, 1)
    return gains


def upright(frequencies: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The gains of a small piano, dB: little bass, a few resonances of its case, dull."""
    corner = random.uniform(70, 140)  # Hz
    gains = -10 * np.log10(1 + (corner / np.maximum(frequencies, 10)) ** 4)
    for centre in np.exp(random.uniform(np.log(120), np.log(1200), 4)):
        distance = np.log2(np.maximum(frequencies, 10) / centre) / random.uniform(0.1, 0.35)  # octaves
        gains += random.uniform(-4, 6) * np.exp(-(distance**2))
    return gains - random.uniform(0, 2.5) * np.maximum(0, np.log2(np.maximum(frequencies, 10) / 1500))


def filtered(samples: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """Audio with these gains, dB `[TAPS // 2 + 1]` from 0 Hz to half the rate, without delay."""
    response = np.roll(np.fft.irfft(10 ** (gains / 20), TAPS), TAPS // 2) * np.hanning(TAPS + 2)[1:-1]
    return convolved(np.pad(samples, (0, TAPS // 2)), response.astype(np.float32))[TAPS // 2 :]


def through_mp3(samples: np.ndarray, kbits: float) -> np.ndarray:
    """Through MP3 at about that constant rate, in kbit/s: the same length and place."""
    peak = max(float(np.abs(samples).max()), 1e-9)
    level = np.clip((MP3_RATES[1] - kbits) / (MP3_RATES[1] - MP3_RATES[0]), 0, 1)
    options = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": level}
    decoded = transcoded(samples * (0.5 / peak), RATE, **options)
    if len(decoded) > len(samples):  # at low rates the file does not say how much of it is padding
        decoded = decoded[MP3_DELAY:]
    decoded = np.pad(decoded, (0, max(0, len(samples) - len(decoded))))[: len(samples)]
    return decoded * np.float32(peak / 0.5)
