"""How much like English a list of words is: its perplexity under a trigram model of books held out from all training.

Interpolated by Witten and Bell's method (1991): p(w | h) = (c(h w) + T(h) p(w | h')) / (c(h) + T(h)), where T(h) is the
number of different words that followed h, and h' is h without its first word. At the bottom, all words of VOCABULARY
are equally likely, so that an unknown word has its proper cost and babble gains nothing by being unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from audiolm_cli.errors import InputError
from audiolm_cli.training.corpora.synthetic import HELD_OUT, held_out_books, ngrams, words_of
from audiolm_cli.training.measures.measures import Figure, figure

ORDER = 3
VOCABULARY = 100_000  # number of English words, known or not

History = tuple[str, ...]


class Trigrams:
    """The counts of texts, a list of words each."""

    def __init__(self, texts: Iterable[Sequence[str]]) -> None:
        self._counts = Counter[History]()  # of up to ORDER consecutive words
        for words in texts:
            for size in range(1, ORDER + 1):
                self._counts.update(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
        self._tokens, self._types = Counter[History](), Counter[History]()  # after each history
        for run, count in self._counts.items():
            self._tokens[run[:-1]] += count
            self._types[run[:-1]] += 1

    def probability(self, history: History, word: str) -> float:
        """Of a word after up to ORDER - 1 others."""
        lower = self.probability(history[1:], word) if history else 1 / VOCABULARY
        tokens, types, run = self._tokens[history], self._types[history], (*history, word)
        return (self._counts[run] + types * lower) / (tokens + types) if tokens else lower

    def bits(self, words: Sequence[str]) -> np.ndarray:
        """Of every word given those before it, `float64 [N]`."""
        histories = (tuple(words[max(0, i + 1 - ORDER) : i]) for i in range(len(words)))
        return -np.log2([self.probability(history, word) for history, word in zip(histories, words, strict=True)])


def unheard(text: Path, transcripts: Sequence[str]) -> list[list[str]]:
    """The words of each paragraph of the books in the folder `text` that are held out from synthetic speech, except
    paragraphs with seven consecutive words of one of the transcripts. Raises InputError if there are none."""
    said, found = ngrams(transcripts), []
    for book in sorted(held_out_books(text, HELD_OUT)):
        paragraphs = (text / f"{book}.txt").read_text(encoding="utf-8").splitlines()
        found += [words_of(line) for line in paragraphs if ngrams([line]).isdisjoint(said)]
    if not any(found):
        raise InputError(f"{text}: no books that are held out there")
    return found


def perplexity(model: Trigrams, heard: Iterable[tuple[str, Sequence[str]]]) -> Figure:
    """Of the recognised words of each speaker, (speaker, words) pairs: two to the power of the average bits per word,
    averaged by text, then speaker, then over all. Texts without words are skipped."""
    bits = figure((speaker, float(model.bits(words).mean())) for speaker, words in heard if words)
    return Figure(*(2**value for value in bits))
