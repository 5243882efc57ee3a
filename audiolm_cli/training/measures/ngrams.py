"""N-gram baselines: bits per token of a unigram and of the better of two bigrams.

A language model that does not beat these has learned nothing that needs a network. Codes are `int64 [Q, F]` per
recording (semantic tokens with Q = 1); counts come from training recordings, bits from validation recordings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

STRENGTHS = tuple(10.0**exponent for exponent in np.arange(-0.5, 6.1, 0.5))


class Bits(NamedTuple):
    """Bits per token of one quantizer; `context` names the better bigram."""

    unigram: float
    bigram: float
    context: str


class Pairs(NamedTuple):
    """Tokens and the token before each, both `int64 [N]`; `vocabulary` marks the beginning."""

    before: np.ndarray
    token: np.ndarray


def contexts(codes: np.ndarray, quantizer: int, vocabulary: int, wrap: int) -> dict[str, np.ndarray]:
    """The candidates for the token before each token of a quantizer, `int64 [F]` each.

    `flattened`: the quantizer before in the same frame, for the first one the quantizer `wrap` of the frame before;
    `frame`: the same quantizer, one frame earlier.
    """
    shift = lambda row: np.concatenate([[vocabulary], row[:-1]])  # noqa: E731
    above = codes[quantizer - 1] if quantizer else shift(codes[wrap])
    return {"flattened": above, "frame": shift(codes[quantizer])}


def ngram_bits(
    training: Sequence[np.ndarray],
    validation: Sequence[np.ndarray],
    vocabulary: int,
    coarse: int | None = None,
    first: int = 0,
) -> list[Bits]:
    """Bits per token for each quantizer from `first` on.

    The bigram is interpolated with the unigram: (count + s * unigram) / (context count + s), so the unigram weighs less
    for frequent contexts; s is tuned on every fourth validation recording. `coarse` (default: all) is the number of
    quantizers per frame in the flattened order.
    """
    quantizers = len(training[0])
    wrap = (coarse or quantizers) - 1
    result = []
    for q in range(first, quantizers):
        unigram = _unigram(np.concatenate([codes[q] for codes in training]), vocabulary)
        plain = float(-np.log2(unigram[np.concatenate([codes[q] for codes in validation])]).mean())
        names = ["frame"] if quantizers == 1 else ["flattened", "frame"]  # the same for one quantizer
        bigrams = []
        for name in names:
            pairs = [
                [Pairs(contexts(codes, q, vocabulary, wrap)[name], codes[q]) for codes in split if codes.shape[1]]
                for split in (training, validation, validation[::4])
            ]
            seen, unseen, tuning = (
                Pairs(*(np.concatenate(part) for part in zip(*split, strict=True))) for split in pairs
            )
            bigrams.append(Bits(plain, _bigram_bits(seen, unseen, tuning, unigram), name))
        result.append(min(bigrams, key=lambda bits: bits.bigram))
    return result


def _unigram(tokens: np.ndarray, vocabulary: int) -> np.ndarray:
    counts = np.bincount(tokens, minlength=vocabulary) + 0.5
    return counts / counts.sum()


def _bigram_bits(seen: Pairs, unseen: Pairs, tuning: Pairs, unigram: np.ndarray) -> float:
    vocabulary = len(unigram)
    keys, counts = np.unique(seen.before * vocabulary + seen.token, return_counts=True)
    totals = np.bincount(seen.before, minlength=vocabulary + 1)

    def bits(pairs: Pairs, strength: float) -> float:
        wanted = pairs.before * vocabulary + pairs.token
        place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        count = np.where(keys[place] == wanted, counts[place], 0)
        chance = (count + strength * unigram[pairs.token]) / (totals[pairs.before] + strength)
        return float(-np.log2(chance).mean())

    return bits(unseen, min(STRENGTHS, key=lambda strength: bits(tuning, strength)))
