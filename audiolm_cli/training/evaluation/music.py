"""Evaluates continuations of piano music: whether the key is kept, density, level, intervals, and whether it goes on.

A case is 10 s of one recording of a validation piece: a prompt of 4 s and the real 6 s after it. Notes are transcribed
by Basic Pitch, a small network (Bittner et al., 2022), with a recall of 0.85 and a precision of 0.80 on our validation
recordings. Audio is `float32 [T]` at 16 kHz. Needs the extra `eval`.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.data import Corpus
from audiolm_cli.training.evaluation.continuations import loops
from audiolm_cli.training.measures.measures import network
from audiolm_cli.training.measures.memorised import Training

PROMPT, NEW = 4 * RATE, 6 * RATE  # samples
NET_RATE, NET_HOP, NET_WINDOW, NET_OVERLAP = 22050, 256, 43844, 30  # Hz, samples, samples, and spectra of Basic Pitch
LOWEST, KEYS = 21, 88  # its lowest key as a MIDI number, and the number of keys
ATTACK = 0.7  # least output at a note's onset
CHORD = 0.05  # s within which notes count as simultaneous
DRONE = 3.0  # s at the end without an onset
STILL = 2 * RATE  # samples at the end that are tested for silence
QUIET = 30.0  # dB below the prompt: silence
BUSY = 2.0  # factor between the notes per second of prompt and continuation beyond which density changed
REACH = 12  # semitones; wider intervals are clipped to this


class Case(NamedTuple):
    """A prompt `[64000]` and the real continuation `[96000]` of a `piece`."""

    piece: str
    prompt: np.ndarray
    real: np.ndarray


class Heard(NamedTuple):
    """A transcription: the notes' onsets in s, in order, and pitches as MIDI numbers; counts of pitch classes, `[12]`;
    level in dB, and length."""

    onsets: np.ndarray
    pitches: np.ndarray
    chroma: np.ndarray
    level: float
    seconds: float

    @property
    def density(self) -> float:
        """Notes per second."""
        return len(self.pitches) / self.seconds


class Score(NamedTuple):
    """Scores of one continuation; `continuations.summarise` averages them."""

    key_kept: float
    density_kept: float
    level: float
    intervals: float
    silent: float
    drones: float
    loops: float
    memorised: float


def cases(corpus: Corpus, count: int, seed: int = 0) -> list[Case]:
    """Up to `count` cases, taking the pieces in turn, from the middle of recordings that are long enough."""
    order = np.random.default_rng(seed).permutation(len(corpus.clips))
    queues: dict[str, list[Case]] = {}
    for clip in (corpus.clips[n] for n in order):
        if (spare := clip.samples - PROMPT - NEW) >= 0:
            prompt, real, _ = np.split(corpus.samples(clip)[spare // 2 :], [PROMPT, PROMPT + NEW])
            queues.setdefault(clip.speaker, []).append(Case(clip.speaker, prompt, real))
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*queues.values()))
    return [case for case in rounds if case is not None][:count]


@functools.cache
def _transcriber() -> Any:
    return network("basic_pitch", "saved_models/icassp_2022/nmp.onnx")


def hear(samples: np.ndarray) -> Heard:
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
    return Heard(frames * NET_HOP / NET_RATE, LOWEST + keys, chroma, float(level), len(samples) / RATE)


def score(
    prompt: Heard, real: Heard, others: Sequence[Heard], made: np.ndarray, tokens: np.ndarray, training: Training
) -> Score:
    """Scores an output `float32 [T]` and its semantic tokens, given the prompt, the real continuation and those of
    `others`, other pieces.

    `key_kept`: the share of the others whose pitch classes correlate less with the prompt's than the output's do.
    `density_kept`: whether it has half to twice as many notes per second as the prompt. `level`: absolute difference
    to the prompt's level, dB. `intervals`: overlap, 0 to 1, of its distribution of melody intervals with the real
    continuation's. `silent`: its last 2 s are, relative to the prompt. `drones`: no note begins in its last 3 s, though
    it is not silent. `loops`: a second of tokens occurs three times or more. `memorised`: the share of 2 s stretches
    that also occur in the training tokens. NaN if there is nothing to compare with.
    """
    heard = hear(made)
    own = _correlation(prompt.chroma, heard.chroma)
    key_kept = np.mean([own > _correlation(prompt.chroma, other.chroma) for other in others])
    ratio = heard.density / prompt.density if prompt.density else np.nan
    silent = 10 * np.log10(np.square(made[-STILL:]).mean() + 1e-10) < prompt.level - QUIET
    drones = not silent and not (heard.onsets > heard.seconds - DRONE).any()
    return Score(
        float(key_kept) if prompt.chroma.any() else np.nan,
        float(1 / BUSY <= ratio <= BUSY) if prompt.density else np.nan,
        abs(heard.level - prompt.level),
        _overlap(steps(heard), steps(real)),
        float(silent),
        float(drones),
        float(loops(tokens)),
        training.share(tokens),
    )


def steps(heard: Heard) -> np.ndarray:
    """Distribution of the intervals from one onset's highest pitch to the next one's, from -REACH to REACH."""
    top: list[int] = []
    last = -np.inf
    for onset, pitch in zip(heard.onsets, heard.pitches, strict=True):
        if onset - last > CHORD:
            top.append(pitch)
            last = onset
        top[-1] = max(top[-1], pitch)
    moves = np.clip(np.diff(top), -REACH, REACH) + REACH
    return np.bincount(moves.astype(int), minlength=2 * REACH + 1) / max(1, len(moves))


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.minimum(a, b).sum()) if b.any() else np.nan


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation; below all others for constant input."""
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else -2.0
