"""Bigrams on sequences whose entropy is known."""

import numpy as np
import pytest

from audiolm_cli.training.measures.ngrams import contexts, ngram_bits


def test_contexts_follow_the_flattened_order():
    codes = np.array([[1, 2, 3], [4, 5, 6]])
    assert contexts(codes, 0, 9, wrap=1)["flattened"].tolist() == [9, 4, 5]
    assert contexts(codes, 1, 9, wrap=1)["flattened"].tolist() == [1, 2, 3]
    assert contexts(codes, 1, 9, wrap=1)["frame"].tolist() == [9, 4, 5]


def test_a_cycle_costs_a_bigram_nothing_and_a_unigram_everything():
    codes = [np.arange(4000)[None] % 8]
    (bits,) = ngram_bits(codes, codes, 8)
    assert bits.unigram == pytest.approx(3, abs=0.01)
    assert bits.bigram < 0.05


def test_independent_tokens_cost_their_entropy():
    random = np.random.default_rng(0)
    training, validation = ([random.integers(16, size=(1, 500)) for _ in range(40)] for _ in range(2))
    (bits,) = ngram_bits(training, validation, 16)
    assert bits.unigram == pytest.approx(4, abs=0.02)
    assert bits.bigram == pytest.approx(4, abs=0.05)


def test_the_better_context_is_chosen_per_quantizer():
    random = np.random.default_rng(0)

    def recording() -> np.ndarray:
        first = np.cumsum(random.integers(2, size=300)) % 8  # follows itself
        return np.stack([first, 7 - first])  # the second follows the first

    codes = [recording() for _ in range(20)]
    first, second = ngram_bits(codes[:10], codes[10:], 8)
    assert second.context == "flattened"
    assert second.bigram < 0.05
    assert first.bigram == pytest.approx(1, abs=0.1)


def test_unseen_tokens_cost_no_infinity():
    (bits,) = ngram_bits([np.zeros((1, 50), int)], [np.full((1, 50), 3)], 4)
    assert np.isfinite(bits.unigram)
    assert np.isfinite(bits.bigram)


def test_fine_quantizers_see_the_coarse_ones():
    random = np.random.default_rng(0)
    coarse = random.integers(8, size=(1, 400))
    codes = [np.concatenate([coarse, coarse])]
    (bits,) = ngram_bits(codes, codes, 8, coarse=1, first=1)
    assert bits.bigram < 0.1
