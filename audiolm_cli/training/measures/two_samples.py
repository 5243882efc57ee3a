"""Do real and synthetic speech give the same tokens? A classifier is trained to tell them apart (classifier two-sample
test, Lopez-Paz and Oquab, 2017); chance is 0.5.

What it can tell apart, stage 1 can, too: then real prompts differ from what stage 1 has learned from synthetic speech.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from audiolm_cli.training.corpora.tokenize import TokenData
from audiolm_cli.training.measures.measures import Figure, figure

STRETCH = 100  # semantic tokens: 4 s
MOST = 4000  # stretches of each kind


class TokenStretch(NamedTuple):
    """`tokens` int64 [STRETCH] of a recording, and its `voice`, which must not be in both halves."""

    voice: str
    tokens: np.ndarray


def stretches(data: Iterable[TokenData], by_track: bool = False) -> list[TokenStretch]:
    """All whole stretches of the tracks; their voices are the speakers or, if `by_track`, the tracks, for data of one
    speaker."""
    found = []
    for number, part in enumerate(data):
        tokens = part.semantic.numpy()
        for track in part.tracks:
            voice = f"{number}/{track.offset}" if by_track else track.speaker
            starts = range(track.offset, track.offset + track.length - STRETCH + 1, STRETCH)
            found += [TokenStretch(voice, tokens[start : start + STRETCH]) for start in starts]
    return found


def told_apart(
    real: Sequence[TokenStretch], synthetic: Sequence[TokenStretch], vocabulary: int, seed: int = 0
) -> Figure:
    """The accuracy of logistic regression on counts of tokens and of consecutive pairs; NaN if a kind is too rare.

    Fitted on equally many stretches of both kinds and tested on others, of other voices. The interval is by bootstrap
    over the real voices. Needs scikit-learn (extra `eval`).
    """
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(seed)
    (fit_real, test_real), (fit_other, test_other) = _halves(real, random), _halves(synthetic, random)
    fitting, testing = min(len(fit_real), len(fit_other)), min(len(test_real), len(test_other))
    if not (fitting and testing):
        return Figure(*[float("nan")] * 3)
    seen = _features([*fit_real[:fitting], *fit_other[:fitting]], vocabulary)
    unseen = _features([*test_real[:testing], *test_other[:testing]], vocabulary)
    classifier = LogisticRegression(max_iter=1000).fit(seen, np.repeat([0, 1], fitting))
    right = classifier.predict(unseen) == np.repeat([0, 1], testing)
    pairs = zip(test_real[:testing], right[:testing], right[testing:], strict=True)
    return figure((stretch.voice, (float(a) + float(b)) / 2) for stretch, a, b in pairs)


def _halves(
    found: Sequence[TokenStretch], random: np.random.Generator
) -> tuple[list[TokenStretch], list[TokenStretch]]:
    """At most MOST stretches in random order, in two halves, with each voice in one of them only."""
    voices = random.permutation(sorted({stretch.voice for stretch in found}))
    fitting = set(voices[: len(voices) // 2].tolist())
    mixed = [found[i] for i in random.permutation(len(found))]
    first, second = ([s for s in mixed if (s.voice in fitting) == half] for half in (True, False))
    return first[: MOST // 2], second[: MOST // 2]


def _features(found: Sequence[TokenStretch], vocabulary: int) -> object:
    """Counts of tokens and of pairs, a sparse matrix `[N, V + V * V]`."""
    from scipy.sparse import csr_matrix

    tokens = np.stack([stretch.tokens for stretch in found])
    columns = np.concatenate([tokens, vocabulary + tokens[:, :-1] * vocabulary + tokens[:, 1:]], 1)
    rows = np.repeat(np.arange(len(tokens)), columns.shape[1])
    shape = len(tokens), vocabulary * (vocabulary + 1)
    return csr_matrix((np.ones(columns.size), (rows, columns.ravel())), shape)
