"""Judging continuations of piano music: is the key kept, how busy is it, how loud, how does it move, does it go on.

A case is 10 s of one recording of a validation piece: a prompt of 4 s and the 6 s that really followed. Notes are those
that Basic Pitch hears, a small network for transcription (Bittner et al., 2022); of our validation recordings it hears
0.85 of the notes, and 0.80 of what it hears is there. Audio is `float32 [T]` at 16 kHz. Needs the extra `eval`.
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
NET_RATE, NET_HOP, NET_WINDOW, NET_OVERLAP = 22050, 256, 43844, 30  # Hz, samples, samples and spectra of Basic Pitch
LOWEST, KEYS = 21, 88  # its first key as a MIDI number, and how many there are
ATTACK = 0.7  # what its output says at least where a note begins
CHORD = 0.05  # s within which notes are struck together
DRONE = 3.0  # s at the end without an attack
STILL = 2 * RATE  # samples at the end whose silence counts
QUIET = 30.0  # dB below the prompt that are silence
BUSY = 2.0  # times the prompt's notes per second, or as many times fewer, are another density
REACH = 12  # semitones; wider intervals count as this


class Case(NamedTuple):
    """A prompt `[64000]`, and what really followed `[96000]`, of a `piece`."""

    piece: str
    prompt: np.ndarray
    real: np.ndarray


class Heard(NamedTuple):
    """What there is to say of a recording: its notes' attacks in s, in order, and pitches as MIDI numbers; how many of
    each pitch class, `[12]`; its level in dB, and how long it is."""

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
    """What is said of one continuation; shares over many come from `continuations.summarise`."""

    key_kept: float
    density_kept: float
    level: float
    intervals: float
    silent: float
    drones: float
    loops: float
    memorised: float


def cases(corpus: Corpus, count: int, seed: int = 0) -> list[Case]:
    """Up to `count` cases, going round the pieces, from the middle of recordings that are long enough."""
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
    """Transcribes `float32 [T]`."""
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
    """Judges what was made `float32 [T]`, and its semantic tokens, beside prompt, true continuation and what follows
    in `others`, other pieces.

    `key_kept`: the share of the others whose pitch classes correlate less with the prompt's than its own do.
    `density_kept`: whether it has half to twice as many notes per second as the prompt. `level`: dB that it is louder
    or softer than the prompt. `intervals`: what its steps between highest notes have in common with those of the true
    continuation, 0 to 1. `silent`: its last 2 s are, beside the prompt. `drones`: no note begins in its last 3 s, and
    yet it is not silent. `loops`: a second of tokens occurs three times or more. `memorised`: the share of 2 s
    stretches that the training tokens have as well. NaN where there is nothing to compare with.
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
    """Shares of the intervals from one attack's highest pitch to the next one's, from REACH down to REACH up."""
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
    """Pearson's; that of what does not vary is below all others."""
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else -2.0
