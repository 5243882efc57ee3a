"""Evaluates continuations: test cases, trivial baselines, and scores.

A case is 10 s of one recording of a validation speaker: a prompt of 3 s and the real 7 s after it. Speakers are
identified by reference audio outside the case: other recordings, or the rest of the same one if a speaker has only one
(then two cases fit, at its start and its end). Audio is `float32 [T]` at 16 kHz throughout.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.data import Corpus
from audiolm_cli.training.measures.measures import Figure, SpokenClip, dnsmos, figure, speech_fraction, voice
from audiolm_cli.training.measures.memorised import TrainingIndex

PROMPT, NEW = 3 * RATE, 7 * RATE  # samples
REFERENCE_LEAST, REFERENCE_MOST = 3 * RATE, 30 * RATE  # samples of a speaker's reference audio
REFERENCE_CLIPS = 3  # kept for reference if a speaker has more
SECOND = 25  # semantic tokens
ALIKE = 0.8  # two stretches of tokens are the same if this share is equal, place by place
LIVELY = 6  # different tokens in a second that counts as a copy: pauses all look alike
LOOPS = 3  # occurrences of a second of tokens that make a loop


class SpeechCase(NamedTuple):
    """A prompt `[48000]`, the real continuation `[112000]`, and the same speaker's `reference` voice `[256]`."""

    speaker: str
    prompt: np.ndarray
    real: np.ndarray
    reference: np.ndarray

    @property
    def recording(self) -> np.ndarray:
        """The prompt and its real continuation, `[160000]`."""
        return np.concatenate([self.prompt, self.real])


@dataclass(frozen=True)
class Voices:
    """One embedding of each speaker's reference audio, `[speakers, 256]`."""

    speakers: list[str]
    embeddings: np.ndarray


class SpeechScores(NamedTuple):
    """Scores of one continuation; `summarise` averages them."""

    speaker_match: float
    speech: float
    dnsmos: float
    repeats: float
    silent: float
    loops: float
    copies: float
    memorised: float


def cases(clips: Sequence[SpokenClip], count: int, seed: int = 0) -> list[SpeechCase]:
    """Up to `count` cases, taking the speakers in turn, in random order; speakers without 13 s of audio give none."""
    by_speaker = _by_speaker(clips)
    order = np.random.default_rng(seed).permutation(sorted(by_speaker))
    queues = [_speaker_cases(speaker, by_speaker[speaker]) for speaker in order]
    rounds = itertools.zip_longest(*queues)
    return [case for case in itertools.chain.from_iterable(rounds) if case is not None][:count]


def reference_voices(clips: Sequence[SpokenClip]) -> Voices:
    """Every speaker's voice, from the clips kept for reference or the only one."""
    by_speaker = _by_speaker(clips)
    audio = [np.concatenate(parts[:REFERENCE_CLIPS])[:REFERENCE_MOST] for parts in by_speaker.values()]
    return Voices(list(by_speaker), np.stack([voice(samples) for samples in audio]))


def _by_speaker(clips: Sequence[SpokenClip]) -> dict[str, list[np.ndarray]]:
    grouped: dict[str, list[np.ndarray]] = {}
    for clip in clips:
        grouped.setdefault(clip.speaker, []).append(clip.samples)
    return grouped


def _speaker_cases(speaker: str, recordings: list[np.ndarray]) -> list[SpeechCase]:
    if len(recordings) > REFERENCE_CLIPS:
        reference = voice(np.concatenate(recordings[:REFERENCE_CLIPS])[:REFERENCE_MOST])
        long = (samples for samples in recordings[REFERENCE_CLIPS:] if len(samples) >= PROMPT + NEW)
        return [SpeechCase(speaker, samples[:PROMPT], samples[PROMPT : PROMPT + NEW], reference) for samples in long]
    found = []
    for samples in recordings:
        rest = len(samples) - PROMPT - NEW
        if rest >= REFERENCE_LEAST:
            head, tail = samples[: PROMPT + NEW], samples[rest:]
            found.append(SpeechCase(speaker, head[:PROMPT], head[PROMPT:], voice(samples[PROMPT + NEW :])))
            found.append(SpeechCase(speaker, tail[:PROMPT], tail[PROMPT:], voice(samples[:rest])))
    return found


def pasted(chosen: Sequence[SpeechCase], training: Corpus, seed: int = 0) -> list[np.ndarray]:
    """For each case, the first 7 s of a random training clip that is long enough."""
    random, long = np.random.default_rng(seed), [clip for clip in training.clips if clip.samples >= NEW]
    return [training.samples(long[i])[:NEW] for i in random.integers(len(long), size=len(chosen))]


def score(
    case: SpeechCase,
    new: np.ndarray,
    voices: Voices,
    tokenize: Callable[[np.ndarray], np.ndarray],
    prompt_tokens: np.ndarray,
    training: TrainingIndex | None = None,
) -> SpeechScores:
    """Scores the new audio `float32 [T]`, which is tokenized again.

    `speaker_match`: among all speakers, the case's own is nearest by Resemblyzer (its reference being the case's).
    `silent`: less than half is speech (of real speech 0.6 to 0.95), or none of the last 2 s. `repeats`: the share of
    tokens equal to the one before; held vowels and pauses have more than speech. `loops`: a second of tokens occurs
    three times or more. `copies`: a second of tokens occurs in the prompt. `memorised`: the share of 2 s stretches that
    also occur in the training tokens; NaN without these.
    """
    own = voices.speakers.index(case.speaker)
    embeddings = voices.embeddings.copy()
    embeddings[own] = case.reference
    heard, speech, tokens = voice(new), speech_fraction(new), np.asarray(tokenize(new))
    matches = bool(heard.any()) and int((embeddings @ heard).argmax()) == own
    silent = speech < 0.5 or speech_fraction(new[-2 * RATE :]) == 0
    repeats = float((tokens[1:] == tokens[:-1]).mean()) if len(tokens) > 1 else 0.0
    return SpeechScores(
        float(matches),
        speech,
        dnsmos(new),
        repeats,
        float(silent),
        float(loops(tokens)),
        float(copies(tokens, prompt_tokens)),
        training.share(tokens) if training else float("nan"),
    )


def alike(a: np.ndarray, b: np.ndarray, width: int = SECOND) -> np.ndarray:
    """Which stretches of `width` tokens of a `[A]` and b `[B]` are the same: `bool [A - width + 1, B - width + 1]`."""
    if min(len(a), len(b)) < width:
        return np.zeros((max(0, len(a) - width + 1), max(0, len(b) - width + 1)), bool)
    equal = np.pad((a[:, None] == b[None, :]).astype(np.int32), ((1, 0), (1, 0)))
    for i in range(1, len(a) + 1):  # running sums along the diagonals
        equal[i, 1:] += equal[i - 1, :-1]
    sums = equal[width:, width:] - equal[:-width, :-width]
    return sums >= ALIKE * width


def loops(tokens: np.ndarray) -> bool:
    """Whether a second of tokens occurs LOOPS times or more, without overlap."""
    for row in alike(tokens, tokens):
        count, free = 0, 0
        for place in np.flatnonzero(row).tolist():
            if place >= free:
                count, free = count + 1, place + SECOND
        if count >= LOOPS:
            return True
    return False


def copies(tokens: np.ndarray, source: np.ndarray) -> bool:
    """Whether a second of tokens, not a pause, also occurs in the source."""
    found = np.flatnonzero(alike(tokens, source).any(1))
    return any(len(np.unique(tokens[place : place + SECOND])) >= LIVELY for place in found)


def summarise(speakers: Sequence[str], scores: Sequence[NamedTuple]) -> dict[str, Figure]:
    """Averages every field of the scores, named tuples of one kind, over speakers."""
    parts = zip(scores[0]._fields, zip(*scores, strict=True), strict=True)
    return {name: figure(zip(speakers, values, strict=True)) for name, values in parts}
