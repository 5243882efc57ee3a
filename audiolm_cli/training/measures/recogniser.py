"""The words that two recognisers find in audio, Whisper tiny.en and base (Radford et al., 2022; faster-whisper).

A single one finds words even in babble; words that both agree on are there. base's encoder also teaches the tokenizer,
so a floor holds only if it holds by tiny.en as well; neither trains, ranks or chooses anything that ships. Audio is
`float32 [T]` at 16 kHz.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import LCSseq, Levenshtein

from audiolm_cli.bundles.bundle import whole
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.data import Corpus
from audiolm_cli.training.corpora.synthetic import ngrams, words_of
from audiolm_cli.training.measures.measures import Figure, figure
from audiolm_cli.training.parts.teacher import model_files

NAMES = ("tiny.en", "base")
MARGIN = 0.08  # s that a word must extend beyond a place on both sides to be cut by it: the accuracy of Whisper's times
COPIED = 8  # consecutive words in common with a text


class RecognisedWords(NamedTuple):
    """Words in lower case, their mean log probability per token (NaN for silence), and, if requested, start and end of
    each in seconds."""

    words: list[str]
    log_probability: float
    times: Sequence[tuple[float, float]] = ()


Hear = Callable[[np.ndarray], RecognisedWords]


def recogniser(name: str, cache: Path, timed: bool = False) -> Hear:
    """A function from samples to the words recognised by the Whisper model `name`, without earlier context; if `timed`,
    with the times of words, by its attention.

    tiny.en takes a ninth of a recording's length on one core, base a third. The model's files are collected in a folder
    of `cache`. Raises ImportError without faster-whisper or the packages of weights (extras `eval` and `teach`).
    """
    from faster_whisper import WhisperModel

    folder = cache / f"whisper-{name}"
    files = model_files(name)
    folder.mkdir(parents=True, exist_ok=True)
    for other in files[0].parent.iterdir():
        if other.suffix in (".json", ".txt") and not (folder / other.name).is_file():
            shutil.copy(other, folder)
    if not (folder / "model.bin").is_file():
        with whole(folder / "model.bin") as part, part.open("wb") as out:
            for file in files:
                out.write(file.read_bytes())
    model = WhisperModel(str(folder), device="cpu", compute_type="int8", cpu_threads=1)

    def hear(samples: np.ndarray) -> RecognisedWords:
        if not np.any(samples):
            return RecognisedWords([], float("nan"))
        segments = list(
            model.transcribe(
                samples, language="en", beam_size=5, temperature=0.0, condition_on_previous_text=False,
                compression_ratio_threshold=None, no_speech_threshold=None, word_timestamps=timed,
            )[0]
        )  # fmt: skip
        sure = float(np.mean([segment.avg_logprob for segment in segments])) if segments else float("nan")
        if not timed:
            return RecognisedWords(words_of(" ".join(segment.text for segment in segments)), sure)
        found = [w for segment in segments for w in segment.words or ()]
        words = [(word, (float(w.start), float(w.end))) for w in found for word in words_of(w.word)]
        return RecognisedWords([word for word, _ in words], sure, [time for _, time in words])

    return hear


def word_error(reference: Sequence[str], heard: Sequence[str]) -> float:
    """Word error rate: insertions, deletions and replacements per reference word; may exceed 1; NaN without any."""
    return Levenshtein.distance(reference, heard) / len(reference) if reference else float("nan")


def heard_alike(one: Sequence[str], other: Sequence[str]) -> float:
    """The share of words that two recognisers agree on, in order: the longest common subsequence over the longer of the
    two; 0 if neither finds a word."""
    return LCSseq.similarity(one, other) / max(1, len(one), len(other))


def across_join(heard: RecognisedWords, join: float, count: int = 2) -> list[str]:
    """The first words that end after a join (s). Needs times."""
    return [word for word, (_, end) in zip(heard.words, heard.times, strict=True) if end > join][:count]


def at_join(heard: RecognisedWords, join: float) -> str | None:
    """The word being said at a join (s), if it extends MARGIN before and after. Needs times."""
    for word, (begin, end) in zip(heard.words, heard.times, strict=True):
        if begin <= join - MARGIN and end >= join + MARGIN:
            return word
    return None


def kept_at_join(real: RecognisedWords, made: RecognisedWords, join: float) -> float:
    """Whether the word that a recording cuts at `join` (s) is said there in a continuation of its beginning: 1 or 0;
    NaN if it cuts none. Needs times."""
    word = at_join(real, join)
    around = [
        other
        for other, (begin, end) in zip(made.words, made.times, strict=True)
        if begin < join + MARGIN and end > join - MARGIN
    ]
    return float("nan") if word is None else float(word in around)


def own_error(corpus: Corpus, hear: Hear, limit: int = 30) -> Figure:
    """The recogniser's word error rate against the transcripts of at most `limit` clips, evenly spread.

    An average over speakers, like all figures.
    """
    clips = [clip for clip in corpus.clips if clip.text]
    if len(clips) > limit:
        clips = [clips[i] for i in np.linspace(0, len(clips) - 1, limit).astype(int)]
    return figure((clip.speaker, word_error(words_of(clip.text), hear(corpus.samples(clip)).words)) for clip in clips)


class Speech(NamedTuple):
    """Conditions for agreement between recognisers to count: they would agree on a song of three words, too."""

    words_per_second: float
    distinct_bigrams: float  # share of all pairs of consecutive words
    copied: float  # share of outputs with COPIED consecutive words of a text


def speech(outputs: Sequence[np.ndarray], heard: Sequence[RecognisedWords], read: Iterable[str] = ()) -> Speech:
    """For outputs and what one recogniser finds in them; `read` are the texts of the training data."""
    seconds = sum(map(len, outputs)) / RATE
    words = [list(found.words) for found in heard]
    pairs = Counter(pair for text in words for pair in itertools.pairwise(text))
    runs = [ngrams([" ".join(text)], COPIED) for text in words]
    every = frozenset[tuple[str, ...]]().union(*runs)
    known = {run for text in read for run in ngrams([text], COPIED) & every}
    return Speech(
        sum(map(len, words)) / max(seconds, 1e-9),
        len(pairs) / max(1, pairs.total()),
        float(np.mean([not known.isdisjoint(own) for own in runs])),
    )
