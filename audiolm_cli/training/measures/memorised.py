"""How much of an output is memorised: the share of its 2 s stretches that occur, nearly the same, in training tokens.

A stretch is known if 90 % of its places equal those of a stretch of one training track, place by place. The search is
exact without comparing all pairs: five differences cut a stretch into at most six runs, so at least one run of equal
tokens is RUN long. A sorted index of all runs of that length gives the places worth comparing.

Mostly silent stretches are skipped, as pauses are runs of the same few tokens and equal by chance: a stretch must have
LIVELY different tokens, one for every second place, so that no single token can fill much more than half of it. Of real
speech 99 % of the stretches are that lively (the median has 40). This skips loops as well; `continuations` counts them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from audiolm_cli.training.corpora.tokenize import TokenData

WIDTH = 50  # semantic tokens: 2 s
NEEDED = 45  # places that must be equal
LIVELY = 25  # different tokens required in a stretch
RUN = -(-NEEDED // (WIDTH - NEEDED + 1))  # equal tokens in a row in every match (pigeonhole principle): 8
PIECE = 3 * WIDTH + 25  # tokens of an output looked up at once: a continuation of 7 s
BLOCK = 4096  # alignments compared at once, about 10 MB
END = -1  # marks places outside any training track
FACTOR = 0x9E3779B97F4A7C15  # odd, of the polynomial hash modulo 2 ** 64


class TrainingIndex:
    """An index of the training tokens: `int [S]` per track, none of them negative.

    Takes 20 bytes and about half a microsecond per token.
    """

    def __init__(self, tracks: Iterable[np.ndarray]) -> None:
        margin = np.full(PIECE, END, np.int32)  # so that no alignment leaves the array
        parts = [part for track in tracks if len(track) >= WIDTH for part in (track, margin[:1])]
        self._tokens = np.concatenate([margin, *parts, margin]).astype(np.int32)
        runs = np.lib.stride_tricks.sliding_window_view(self._tokens, RUN)
        places = np.flatnonzero((runs != END).all(1))
        hashes = _hashes(self._tokens)[places]
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._places = hashes[order], places[order]

    @classmethod
    def of(cls, *data: TokenData) -> TrainingIndex:
        """The index of passes over recordings, real and synthetic."""
        return cls(d.semantic[track.offset :][: track.length].numpy() for d in data for track in d.tracks)

    def share(self, tokens: np.ndarray) -> float:
        """The share of lively stretches of an output `int [S]` that occur in the training tokens.

        NaN, which `measures.figure` skips, if there is none: for less than 2 s, and for silence.
        """
        counted = lively(tokens)
        return float(self.known(tokens)[counted].mean()) if counted.any() else float("nan")

    def known(self, tokens: np.ndarray) -> np.ndarray:
        """Which stretches of `int [S]` are lively and occur in the training: `bool [S - 49]`, by their first place."""
        wanted = lively(tokens)
        pieces = range(0, len(wanted), PIECE - WIDTH + 1)
        found = [
            self._known(tokens[first : first + PIECE], wanted[first : first + PIECE - WIDTH + 1]) for first in pieces
        ]
        return np.concatenate([np.zeros(0, bool), *found])

    def _known(self, tokens: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Which of the wanted stretches of one piece occur in the training."""
        found = np.zeros(len(wanted), bool)
        hashes = _hashes(tokens)
        first, last = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        compared = np.zeros(len(self._tokens), bool)  # by the training token aligned with the piece's first
        for run in np.argsort(last - first):  # rare runs first: often they make those in pauses unnecessary
            around = slice(max(0, run + RUN - WIDTH), run + 1)  # stretches that contain the run
            if not (wanted[around] & ~found[around]).any():
                continue
            alignments = self._places[first[run] : last[run]] - run
            alignments = alignments[~compared[alignments]]
            compared[alignments] = True
            for start in range(0, len(alignments), BLOCK):
                found |= self._matches(tokens, alignments[start : start + BLOCK])
        return found & wanted

    def _matches(self, tokens: np.ndarray, alignments: np.ndarray) -> np.ndarray:
        """Which stretches of a piece equal training tokens in NEEDED places, in any of the alignments `[A]`."""
        beside = np.lib.stride_tricks.sliding_window_view(self._tokens, len(tokens))[alignments]
        equal = (beside == tokens).astype(np.int32)
        equal[beside == END] = -WIDTH  # no stretch crosses the end of a track
        sums = np.cumsum(equal, 1, dtype=np.int32)
        counts = sums[:, WIDTH - 1 :].copy()
        counts[:, 1:] -= sums[:, :-WIDTH]
        return np.any(counts >= NEEDED, axis=0)


def lively(tokens: np.ndarray) -> np.ndarray:
    """Which stretches of `int [S]` have LIVELY different tokens: `bool [S - 49]`, empty for less than 2 s."""
    if len(tokens) < WIDTH:
        return np.zeros(0, bool)
    ordered = np.sort(np.lib.stride_tricks.sliding_window_view(tokens, WIDTH), 1)
    return (ordered[:, 1:] != ordered[:, :-1]).sum(1) + 1 >= LIVELY


def _hashes(tokens: np.ndarray) -> np.ndarray:
    """A hash of every RUN tokens in a row, `uint64 [S - 7]`; collisions only cost time."""
    hashes = np.zeros(len(tokens) - RUN + 1, np.uint64)
    for k in range(RUN):
        hashes = hashes * np.uint64(FACTOR) + tokens[k : len(tokens) - RUN + 1 + k].astype(np.uint64)
    return hashes
