"""Phone information on joint distributions whose answer is known, and the aligner on a short recording."""

import numpy as np
import pytest

from audiolm_cli.training.corpora.data import Clip, Corpus
from audiolm_cli.training.measures import phones
from audiolm_cli.training.measures.phones import PHONES, Spoken, normalised_information, phone_information, token_labels


def test_information_is_one_when_tokens_are_phones_and_zero_when_independent():
    assert normalised_information(np.diag([5, 3, 2])) == pytest.approx(1)
    assert normalised_information(np.outer([5, 3, 2], [1, 4])) == pytest.approx(0)


def test_correction_takes_off_the_bias_of_few_observations():
    random = np.random.default_rng(0)
    counts = np.zeros((40, 256), int)
    np.add.at(counts, (random.integers(40, size=20000), random.integers(256, size=20000)), 1)
    assert normalised_information(counts) > 0.05
    assert abs(normalised_information(counts, corrected=True)) < 0.025


def test_labels_come_from_the_middle_of_each_token():
    runs = [("SIL", 4), ("AA", 5), ("+NSN+", 3), ("B", 2)]
    assert [PHONES[i] for i in token_labels(runs, 5)] == ["SIL", "AA", "SIL", "B", "SIL"]


def test_phone_information_of_a_perfect_tokenizer():
    random = np.random.default_rng(0)
    labels = [random.integers(10, size=200) for _ in range(8)]
    clips = [Spoken(str(i), phones.astype(np.float32), phones) for i, phones in enumerate(labels)]
    figures = phone_information(lambda samples: 9 - samples.astype(np.int64), clips)
    assert figures["information"] == pytest.approx(1)
    assert figures["codes"] == 10
    assert figures["seconds"] == pytest.approx(8 * 200 / 25)
    assert figures["bits_per_second"] == pytest.approx(25 * np.log2(10), rel=0.01)


def test_phone_information_cuts_to_the_shorter_and_knows_nothing_from_one_code():
    clips = [Spoken("a", np.zeros(100), np.arange(100) % 7)]
    assert phone_information(lambda samples: np.zeros(90, np.int64), clips)["information"] == pytest.approx(0)


def test_mfcc_has_a_row_per_token():
    pytest.importorskip("librosa", reason="needs the extra 'eval'")
    for length in (640, 1000, 16000):
        assert phones.mfcc(np.zeros(length, np.float32)).shape == (length // 640, 39)


def test_alignments_are_cached_and_unknown_words_left_out(tmp_path, monkeypatch):
    calls: list[str] = []

    def fake_align(samples, text):
        calls.append(text)
        return None if text == "xyzzy" else [("AA", 100)]

    monkeypatch.setattr(phones, "aligner", lambda: fake_align)
    texts = ["hello", "xyzzy", ""]
    corpus = Corpus(
        np.zeros(48000, np.int16), [Clip(f"{i}.wav", "a", "", t, i * 16000, 16000) for i, t in enumerate(texts)]
    )
    for _ in range(2):
        spoken = phones.spoken_clips(corpus, tmp_path)
        assert len(spoken) == 1
        assert spoken[0].phones.tolist() == [PHONES.index("AA")] * 25
    assert calls == ["hello", "xyzzy"]


def test_the_aligner_refuses_unknown_words_and_survives_noise():
    pytest.importorskip("pocketsphinx", reason="needs the extra 'eval'")
    align = phones.aligner()
    assert align(np.zeros(16000, np.float32), "xyzzyq") is None
    runs = align((0.1 * np.random.default_rng(0).standard_normal(32000)).astype(np.float32), "hello world")
    assert runs is None or sum(duration for _, duration in runs) <= 201
