"""Word error, and what the recogniser hears in a real recording."""

import math
from pathlib import Path

import numpy as np
import pytest

from audiolm_cli import audio
from audiolm_cli.training import recogniser
from audiolm_cli.training.data import Clip, Corpus
from audiolm_cli.training.recogniser import Hear, own_error, word_error

PROMPT = Path(__file__).parents[1] / "examples" / "prompt.flac"
TEXT = "the little woman thought that the secret might keep"


@pytest.fixture(scope="module")
def hear() -> Hear:
    pytest.importorskip("pocketsphinx", reason="needs the extra 'eval'")
    return recogniser.recogniser()


@pytest.fixture(scope="module")
def prompt() -> np.ndarray:
    return audio.read(PROMPT, 16000).samples


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
    words = hear(prompt)
    assert word_error(TEXT.split(), words) <= 0.5
    assert all(word == word.lower() and word.replace("'", "").isalpha() for word in words)


def test_what_is_heard_does_not_depend_on_other_calls(hear: Hear, prompt: np.ndarray) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)
    word_cut = prompt[:16000]  # of which a decoder used before makes "wall", "boy" or "while"
    first = hear(word_cut)
    for other in (prompt[5000:21000], prompt[15000:31000], noise):
        hear(other)
        assert hear(word_cut) == first


def test_nothing_is_heard_in_silence(hear: Hear, prompt: np.ndarray) -> None:
    for length in (0, 1, 160, 16000):
        assert hear(np.zeros(length, np.float32)) == []
    assert hear(prompt[:16000])


def test_own_error_is_an_average_over_speakers_of_clips_with_a_transcript() -> None:
    texts = [("a", "One two"), ("a", "one two"), ("b", "one"), ("c", "")]
    clips = [Clip(f"{i}.wav", speaker, "", text, i * 10, 10) for i, (speaker, text) in enumerate(texts)]
    corpus = Corpus(np.arange(40, dtype=np.int16), clips)
    heard: list[int] = []

    def hear(samples: np.ndarray) -> list[str]:
        heard.append(round(float(samples[0]) * 32768))
        return ["one"]

    assert own_error(corpus, hear).mean == 0.25
    assert heard == [0, 10, 20]
    heard.clear()
    assert own_error(corpus, hear, limit=2).mean == 0.25
    assert heard == [0, 20]
