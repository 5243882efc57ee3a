"""Evaluates continuations of piano music: key, density, pace, figures and intervals, the sound, and whether it goes on.

A case is a stretch of one recording of a validation piece: a prompt of 4 s and the real 6 or 30 s after it. Notes are
transcribed by Basic Pitch, a small network (Bittner et al., 2022), with a recall of 0.85 and a precision of 0.80 on our
validation recordings. Audio is `float32 [T]` at 16 kHz. Needs the extra `eval`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.data import Corpus
from audiolm_cli.training.corpora.piano_synth import Note, fluidsynth, sound_font
from audiolm_cli.training.evaluation.continuations import loops
from audiolm_cli.training.measures import noise
from audiolm_cli.training.measures.measures import Figure, figure, network
from audiolm_cli.training.measures.memorised import TrainingIndex

PROMPT, NEW, LONG = 4 * RATE, 6 * RATE, 30 * RATE  # samples
NET_RATE, NET_HOP, NET_WINDOW, NET_OVERLAP = 22050, 256, 43844, 30  # Hz, samples, samples, and spectra of Basic Pitch
LOWEST, KEYS = 21, 88  # its lowest key as a MIDI number, and the number of keys
ATTACK = 0.7  # least output at a note's onset
CHORD = 0.05  # s within which notes count as simultaneous
DRONE = 3.0  # s at the end without an onset
STILL = 2 * RATE  # samples at the end that are tested for silence
QUIET = 30.0  # dB below the prompt: silence
BUSY = 2.0  # factor between the notes per second of prompt and continuation beyond which density changed
STEADY = 1.15  # factor between the paces of prompt and continuation that counts as the same
PULSES = np.arange(np.log2(0.06), 1, 0.01)  # octaves above 1 s, between attacks
SPREAD = 0.04  # octaves, of the kernel that smooths them
FIGURE = 3  # successive highest notes
REACH = 12  # semitones; wider intervals are clipped to this
NOTES, SINGLE = 0.8, (48, 85)  # s from one single note to the next, and their keys
SCALE = (0, 2, 4, 5, 7, 9, 11)


class PianoCase(NamedTuple):
    """A prompt `[64000]` and the real continuation, `[96000]` or longer, of a `piece`."""

    piece: str
    prompt: np.ndarray
    real: np.ndarray


class Transcription(NamedTuple):
    """A transcription: the notes' onsets in s, in order, and pitches as MIDI numbers; counts of pitch classes, `[12]`;
    level and noise behind the notes in dB, spectral flatness, and length."""

    onsets: np.ndarray
    pitches: np.ndarray
    chroma: np.ndarray
    level: float
    noise: float
    flatness: float
    seconds: float

    @property
    def density(self) -> float:
        """Notes per second."""
        return len(self.pitches) / self.seconds

    @property
    def attacks(self) -> np.ndarray:
        """The first note of each of the groups that begin together, as an index of the notes."""
        found: list[int] = []
        for n, onset in enumerate(self.onsets):
            if not found or onset - self.onsets[found[-1]] > CHORD:
                found.append(n)
        return np.array(found, int)

    @property
    def melody(self) -> np.ndarray:
        """The highest pitch of every attack."""
        return np.maximum.reduceat(self.pitches, self.attacks) if len(self.pitches) else self.pitches

    @property
    def rate(self) -> float:
        """Attacks per second."""
        return len(self.attacks) / self.seconds

    @property
    def pulse(self) -> float:
        """The commonest wait between attacks as attacks per second: the peak of its distribution over octaves. NaN with
        less than four attacks."""
        waits = np.log2(np.maximum(np.diff(self.onsets[self.attacks]), 1e-3))
        waits = waits[(waits > PULSES[0]) & (waits < PULSES[-1])]
        if len(waits) < 3:
            return np.nan
        density = np.exp(-0.5 * ((PULSES[:, None] - waits) / SPREAD) ** 2).sum(1)
        return float(2 ** -PULSES[density.argmax()])


class PianoScores(NamedTuple):
    """Scores of one continuation; `summarise` averages them. Those before `noise` are of notes."""

    key_kept: float
    density_kept: float
    rate_kept: float
    tempo_kept: float
    figures: float
    intervals: float
    noise: float
    flatness: float
    level: float
    silent: float
    drones: float
    loops: float
    memorised: float


def cases(corpus: Corpus, count: int, seed: int = 0, new: int | None = None) -> list[PianoCase]:
    """Up to `count` cases with `new` real samples (NEW by default), taking the pieces in turn, from the middle of
    recordings that are long enough."""
    new = new or NEW
    order = np.random.default_rng(seed).permutation(len(corpus.clips))
    queues: dict[str, list[PianoCase]] = {}
    for clip in (corpus.clips[n] for n in order):
        if (spare := clip.samples - PROMPT - new) >= 0:
            prompt, real, _ = np.split(corpus.samples(clip)[spare // 2 :], [PROMPT, PROMPT + new])
            queues.setdefault(clip.speaker, []).append(PianoCase(clip.speaker, prompt, real))
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*queues.values()))
    return [case for case in rounds if case is not None][:count]


@functools.cache
def _transcriber() -> Any:
    return network("basic_pitch", "saved_models/icassp_2022/nmp.onnx")


def hear(samples: np.ndarray) -> Transcription:
    """Transcribes audio `float32 [T]`."""
    import librosa

    audio = librosa.resample(samples, orig_sr=RATE, target_sr=NET_RATE)
    step, edge = NET_WINDOW - NET_OVERLAP * NET_HOP, NET_OVERLAP // 2
    count, spectra = -(-len(audio) // step), len(audio) // NET_HOP
    audio = np.pad(audio, (edge * NET_HOP, NET_WINDOW + count * step - len(audio)))
    windows = np.stack([audio[n * step :][:NET_WINDOW] for n in range(count)]).astype(np.float32)
    attacks = _transcriber().run(["StatefulPartitionedCall:2"], {"serving_default_input_2:0": windows[..., None]})[0]
    attacks = attacks[:, edge:-edge].reshape(-1, KEYS)[:spectra]
    before, after = (np.pad(attacks, ((1, 0), (0, 0)))[:-1], np.pad(attacks, ((0, 1), (0, 0)))[1:])
    frames, keys = np.nonzero((attacks >= ATTACK) & (attacks > before) & (attacks >= after))
    chroma = np.bincount((LOWEST + keys) % 12, minlength=12)
    level = 10 * np.log10(np.square(samples).mean() + 1e-10)
    onsets, behind = frames * NET_HOP / NET_RATE, noise.behind_notes(samples, frames * NET_HOP / NET_RATE)
    return Transcription(onsets, LOWEST + keys, chroma, level, behind, noise.flatness(samples), len(samples) / RATE)


def score(
    prompt: Transcription,
    real: Transcription,
    others: Sequence[Transcription],
    made: np.ndarray,
    tokens: np.ndarray,
    training: TrainingIndex,
) -> PianoScores:
    """Scores an output `float32 [T]` and its semantic tokens, given the prompt, the real continuation and those of
    `others`, other pieces.

    `key_kept`: the share of the others whose pitch classes correlate less with the prompt's than the output's do.
    `density_kept`: whether it has half to twice as many notes per second as the prompt. `rate_kept`: whether it has as
    many attacks per second, within 15 %. `tempo_kept`: whether the commonest wait between attacks is the same within
    15 %, or half, twice and so on. `figures`: the share of three successive highest pitch classes that the prompt has
    as well. `intervals`: overlap, 0 to 1, of its distribution of melody intervals with the real continuation's.
    `noise`: behind its notes, dB below them. `flatness`: of its spectrum, relative to the prompt's. `level`: absolute
    difference to the prompt's level, dB. `silent`: its last 2 s are, relative to the prompt. `drones`: no note begins
    in its last 3 s, though it is not silent. `loops`: a second of tokens occurs three times or more. `memorised`: the
    share of 2 s stretches that also occur in the training tokens. NaN if there is nothing to compare with.
    """
    heard = hear(made)
    own, known = _correlation(prompt.chroma, heard.chroma), set(figures(prompt))
    key_kept = np.mean([own > _correlation(prompt.chroma, other.chroma) for other in others])
    ratio = heard.density / prompt.density if prompt.density else np.nan
    silent = 10 * np.log10(np.square(made[-STILL:]).mean() + 1e-10) < prompt.level - QUIET
    drones = not silent and not (heard.onsets > heard.seconds - DRONE).any()
    return PianoScores(
        float(key_kept) if prompt.chroma.any() else np.nan,
        float(1 / BUSY <= ratio <= BUSY) if prompt.density else np.nan,
        _same(heard.rate, prompt.rate),
        _same(heard.pulse, prompt.pulse, metre=True),
        float(np.mean([each in known for each in figures(heard)])) if known and figures(heard) else np.nan,
        _overlap(steps(heard), steps(real)),
        heard.noise,
        heard.flatness / prompt.flatness,
        abs(heard.level - prompt.level),
        float(silent),
        float(drones),
        float(loops(tokens)),
        training.share(tokens),
    )


def summarise(pieces: Sequence[str], scores: Sequence[PianoScores]) -> dict[str, Figure]:
    """Every score averaged over pieces; of `flatness`, a ratio, the median."""
    averages = {"flatness": np.median}
    columns = zip(PianoScores._fields, zip(*scores, strict=True), strict=True)
    return {name: figure(zip(pieces, column, strict=True), averages.get(name, np.mean)) for name, column in columns}


def single_notes(count: int, seed: int = 0) -> list[PianoCase]:
    """Cases of notes that are played one at a time, in the keys of a major scale, by FluidSynth. Raises UsageError if
    it is missing."""
    found, random, samples = [], np.random.default_rng(seed), PROMPT + NEW
    for number in range(count):
        tonic = int(random.integers(12))
        keys = [key for key in range(*SINGLE) if (key - tonic) % 12 in SCALE]
        onsets = np.arange(0.05, samples / RATE, NOTES)
        notes = [
            Note(float(t), float(t) + NOTES, int(random.choice(keys)), int(random.integers(50, 90))) for t in onsets
        ]
        sound = fluidsynth(notes, samples, sound_font())
        sound *= 0.3 / np.abs(sound).max()
        found.append(PianoCase(f"scale {number}", sound[:PROMPT], sound[PROMPT:]))
    return found


def figures(heard: Transcription) -> list[tuple[int, ...]]:
    """All FIGURE successive pitch classes of the highest notes."""
    classes = (heard.melody % 12).tolist()
    return list(zip(*(classes[n:] for n in range(FIGURE)), strict=False))


def steps(heard: Transcription) -> np.ndarray:
    """Distribution of the intervals from one attack's highest pitch to the next one's, from -REACH to REACH."""
    moves = np.clip(np.diff(heard.melody), -REACH, REACH) + REACH
    return np.bincount(moves.astype(int), minlength=2 * REACH + 1) / max(1, len(moves))


def _same(pace: float, before: float, metre: bool = False) -> float:
    """Whether two paces agree within a factor STEADY, with `metre` also after doubling or halving; NaN without one
    before."""
    if not before > 0:
        return np.nan
    if not pace > 0:
        return 0.0
    octaves = np.log2(pace / before)
    return float(abs(octaves - np.round(octaves) if metre else octaves) <= np.log2(STEADY))


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.minimum(a, b).sum()) if b.any() else np.nan


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; below all others for constant input."""
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else -2.0
