"""A classifier tells tokens apart where they differ, and does not where they do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from audiolm_cli.config import TokenSpec
from audiolm_cli.training.corpora.tokenize import TokenData, Track
from audiolm_cli.training.measures.two_samples import STRETCH, TokenStretch, stretches, told_apart

VOCABULARY = 12


def drawn(seed: int, step: int | None = None, voices: int = 20, each: int = 6) -> list[TokenStretch]:
    """Random tokens; with `step` each second one lies that far above the one before it: all are as frequent as ever."""
    random, found = np.random.default_rng(seed), []
    for voice in range(voices):
        for _ in range(each):
            tokens = random.integers(0, VOCABULARY, STRETCH)
            if step:
                tokens[1::2] = (tokens[::2] + step) % VOCABULARY
            found.append(TokenStretch(f"{seed}/{voice}", tokens))
    return found


def test_the_same_kind_is_not_told_apart() -> None:
    pytest.importorskip("sklearn", reason="needs the extra 'eval'")
    found = told_apart(drawn(0), drawn(1, voices=40), VOCABULARY)
    assert found.low < 0.5 < found.high


def test_kinds_that_differ_in_pairs_are_told_apart() -> None:
    pytest.importorskip("sklearn", reason="needs the extra 'eval'")
    first = told_apart(drawn(0), drawn(1, step=3), VOCABULARY)
    assert first.mean > 0.95
    assert told_apart(drawn(0), drawn(1, step=3), VOCABULARY) == first


def test_voices_are_not_what_is_told_apart() -> None:
    """Each voice has a token of its own, which says which kind it is: of no use for other voices."""
    pytest.importorskip("sklearn", reason="needs the extra 'eval'")
    kinds = []
    for kind in (0, 1):
        found = drawn(kind, voices=10)
        for n, stretch in enumerate(found):
            stretch.tokens[:20] = VOCABULARY + 10 * kind + n // 6
        kinds.append(found)
    assert told_apart(kinds[0], kinds[1], VOCABULARY + 20).mean < 0.75


def test_nothing_is_said_of_too_little() -> None:
    pytest.importorskip("sklearn", reason="needs the extra 'eval'")
    assert np.isnan(told_apart(drawn(0, voices=1), drawn(1), VOCABULARY).mean)
    assert np.isnan(told_apart([], drawn(1), VOCABULARY).mean)


def test_stretches_are_whole_and_lie_in_one_track() -> None:
    tokens = torch.arange(500)
    tracks = [Track("a/0", 0, 250), Track("a/0", 250, 99), Track("b/0", 349, 151)]
    data = TokenData(TokenSpec(), tokens, torch.zeros(12, 0), tracks, {})
    found = stretches([data])
    assert [(s.voice, s.tokens.tolist()) for s in found] == [
        ("a/0", list(range(100))),
        ("a/0", list(range(100, 200))),
        ("b/0", list(range(349, 449))),
    ]
    assert [s.voice for s in stretches([data, data], by_track=True)] == ["0/0", "0/0", "0/349", "1/0", "1/0", "1/349"]
