"""How much of an output is learned by heart: which of its 2 s stretches occur in the training tokens, nearly the same.

A stretch is known if 90 % of its places equal those of some stretch of one training track, place by place. The search
is exact, and yet does not compare everything with everything: five differences cut a stretch into six runs at most, so
one run of equal tokens is at least RUN long. All runs of that length lie in a sorted index, which gives the places
worth comparing.

Mostly silent stretches are left out, as pauses are runs of the same few tokens and equal by chance: LIVELY different
tokens are asked for, one for every second place, so that no single token can fill much more than half of a stretch.
Of real speech 99 % of the stretches are that lively (the median has 40). Loops are left out with them; those are
counted in `continuations`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from audiolm_cli.training.corpora.tokenize import TokenData

WIDTH = 50  # semantic tokens: 2 s
NEEDED = 45  # places that must be equal
LIVELY = 25  # different tokens in a stretch that counts
RUN = -(-NEEDED // (WIDTH - NEEDED + 1))  # equal tokens in a row that every match contains (pigeonhole principle): 8
PIECE = 3 * WIDTH + 25  # tokens of an output looked up at once: a continuation of 7 s
BLOCK = 4096  # alignments compared at once, about 10 MB
END = -1  # stands where no training track is
FACTOR = 0x9E3779B97F4A7C15  # odd, of the polynomial hash modulo 2 ** 64


class Training:
    """The training tokens, indexed: `int [S]` of each track, none of them negative.

    Takes 20 bytes and about half a microsecond for each token.
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
    def of(cls, *data: TokenData) -> Training:
        """Of passes over recordings, real and synthetic."""
        return cls(d.semantic[track.offset :][: track.length].numpy() for d in data for track in d.tracks)

    def share(self, tokens: np.ndarray) -> float:
        """Share of the stretches of an output `int [S]` that the training knows, of those that are lively.

        NaN, which `measures.figure` leaves out, where none is: for less than 2 s, and for silence.
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
        """Which of the wanted stretches of one piece the training knows."""
        found = np.zeros(len(wanted), bool)
        hashes = _hashes(tokens)
        first, last = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        compared = np.zeros(len(self._tokens), bool)  # by the training token that lies beside the first of the piece
        for run in np.argsort(last - first):  # rare runs first: often they leave nothing to ask of those in pauses
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
        """Which stretches of a piece are equal in NEEDED places to training tokens, in any of the alignments `[A]`."""
        beside = np.lib.stride_tricks.sliding_window_view(self._tokens, len(tokens))[alignments]
        equal = (beside == tokens).astype(np.int32)
        equal[beside == END] = -WIDTH  # no stretch runs over the end of a track
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
    """A number for every RUN tokens in a row, `uint64 [S - 7]`; different runs may share one, which costs time only."""
    hashes = np.zeros(len(tokens) - RUN + 1, np.uint64)
    for k in range(RUN):
        hashes = hashes * np.uint64(FACTOR) + tokens[k : len(tokens) - RUN + 1 + k].astype(np.uint64)
    return hashes
