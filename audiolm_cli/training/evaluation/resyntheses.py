"""Evaluates resynthesis: whether the voice is the reference's or the source's, and whether the content is kept.

A pairing is 7 s of a validation speaker's recording as the source, and another speaker as the reference: 3 s, or 10 s
of which the pipeline chooses a part. Voices are identified as in `continuations`, by audio outside both. Content is
compared by semantic tokens, the source's and those of the output, and by melody; `recogniser` compares words. Audio is
`float32 [T]` at 16 kHz.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

from audiolm_cli.training.evaluation.continuations import SpeechCase, Voices
from audiolm_cli.training.measures import pitch
from audiolm_cli.training.measures.measures import dnsmos, voice

SOURCES = 5  # resynthesised with each reference


class Pairing(NamedTuple):
    """What `source` says, to be spoken by the speaker of `reference`."""

    source: SpeechCase
    reference: SpeechCase


class ResynthesisScores(NamedTuple):
    """Scores of one resynthesis; `continuations.summarise` averages them."""

    speaker_is_reference: float
    speaker_is_source: float
    token_error: float
    dnsmos: float
    pitch_correlation: float


def pairings(cases: Sequence[SpeechCase], count: int) -> list[list[Pairing]]:
    """Groups of SOURCES pairings with one reference each, whose speaker is in none of its sources; `count` in all."""
    groups = []
    for n in range(count // SOURCES):
        reference = cases[n % len(cases)]
        others = [case for case in cases if case.speaker != reference.speaker]
        chosen = [others[(n * SOURCES + k) % len(others)] for k in range(SOURCES)] if others else []
        groups.append([Pairing(source, reference) for source in chosen])
    return groups


def score(
    pairing: Pairing, made: np.ndarray, voices: Voices, wanted: np.ndarray, got: np.ndarray, melody: np.ndarray
) -> ResynthesisScores:
    """Scores an output `float32 [T]` by its audio, by its tokens `got` against those `wanted`, and by its melody
    against the source's `pitch.contour`."""
    embeddings = voices.embeddings.copy()
    for case in pairing:
        embeddings[voices.speakers.index(case.speaker)] = case.reference
    heard = voice(made)
    nearest = voices.speakers[int((embeddings @ heard).argmax())] if heard.any() else None
    return ResynthesisScores(
        float(nearest == pairing.reference.speaker),
        float(nearest == pairing.source.speaker),
        Levenshtein.distance(wanted.tolist(), got.tolist()) / max(1, len(wanted)),
        dnsmos(made),
        pitch.correlation(melody, pitch.contour(made)),
    )
