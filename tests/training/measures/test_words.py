"""The word test: how pseudo-words are made and preferences counted, and flite's phones where it is installed."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiolm_cli.bundles import bundle as bundles
from audiolm_cli.errors import InputError
from audiolm_cli.training.corpora.data import Clip, Corpus
from audiolm_cli.training.measures import words
from audiolm_cli.training.measures.words import Pair, Phones

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="needs flite (a Debian package)")


def phones(text: str) -> Phones:
    return tuple(text.split())


COVER, WHETHER = phones("k ah1 v er0"), phones("w eh1 dh er0")
MONEY, WATER = phones("m ah1 n iy0"), phones("w ao1 t er0")


def lexicon(*spoken: str) -> dict[str, list[Phones]]:
    """A dictionary in which every sequence of vowel, consonants and vowel is common."""
    common = [f"x{n} {text}" for text in ("ah n iy", "ah t er", "ao n iy", "ao t er") for n in range(words.CROSSINGS)]
    return {str(n): [phones(text)] for n, text in enumerate((*spoken, *common))}


def corpus(*texts: str) -> Corpus:
    return Corpus(np.zeros(0, np.int16), [Clip(f"{n}.wav", "a", "", text, 0, 0) for n, text in enumerate(texts)])


def test_an_exchange_keeps_all_sounds_and_the_beginnings():
    pseudo = words.exchanged(COVER, WHETHER)
    assert pseudo == (phones("k ah1 dh er0"), phones("w eh1 v er0"))
    assert Counter(COVER + WHETHER) == Counter(pseudo[0] + pseudo[1])
    assert words.exchanged(COVER, phones("k ah1 t er0")) is None  # the vowel is the same
    assert words.exchanged(COVER, phones("b iy0 v er1")) is None  # another stress
    assert words.exchanged(COVER, phones("m ae1 s t er0")) is None  # more sounds
    assert words.exchanged(COVER, phones("eh1 v er0")) is None  # ends alike


def test_pairs_are_no_words_but_could_be():
    spoken = {"money": MONEY, "water": WATER}
    (pair,) = words.pairs(spoken, lexicon("m ah n iy", "w ao t er"), 9)
    assert set(pair.spelling) == set(spoken)
    assert set(pair.pseudo) == {phones("m ah1 t er0"), phones("w ao1 n iy0")}
    assert words.pairs(spoken, lexicon("m ah t er"), 9) == []  # a word
    assert words.pairs(spoken, lexicon("w aa n iy"), 9) == []  # sounds like one
    rare = {word: spoken for word, spoken in lexicon().items() if "ao" not in spoken[0]}
    assert words.pairs(spoken, rare, 9) == []  # no word has such a middle


def test_frequent_words_are_long_known_and_ordered():
    known = {"water": [plain(WATER)], "money": [plain(MONEY)], "it": [phones("ih t")], "stream": [phones("s t r iy m")]}
    assert words.frequent_words(corpus("money it water", "water xyzzy stream"), known) == ["water", "money"]


def plain(spoken: Phones) -> Phones:
    return words.plain(spoken)


def test_schwa_and_stress_are_not_in_the_dictionary():
    assert plain(phones("k ax0 m p y uw1 t er0")) == phones("k ah m p y uw t er")


def test_pairs_from_the_dictionary_are_the_same_every_time():
    pytest.importorskip("pocketsphinx", reason="needs the extra 'eval'")
    known = words.pronunciations()
    texts = corpus("cover whether money water billy future nature never public")
    spoken = {word: stressed(known[word][0]) for word in words.frequent_words(texts, known)}
    found = words.pairs(spoken, known, 3)
    assert found
    assert found == words.pairs(dict(reversed(spoken.items())), known, 3)
    taken = {p for said in known.values() for p in said}
    for pair in found:
        assert Counter(pair.real[0] + pair.real[1]) == Counter(pair.pseudo[0] + pair.pseudo[1])
        assert all(plain(p) in taken for p in pair.real)
        assert not any(plain(p) in taken for p in pair.pseudo)


def stressed(spoken: Phones) -> Phones:
    """With the stress on the first syllable."""
    first = next(p for p in spoken if p in words.VOWELS)
    return tuple(p + ("" if p not in words.VOWELS else "1" if p is first else "0") for p in spoken)


@pytest.fixture
def bundle(tiny_bundle: Path) -> Any:
    return bundles.load(str(tiny_bundle), device="cpu")


def said(voice: str, spoken: Phones) -> np.ndarray:
    """Noise that depends on what is said."""
    random = np.random.default_rng([ord(letter) for letter in voice + "".join(spoken)])
    return (0.1 * random.standard_normal(640 * 3 * len(spoken))).astype(np.float32)


def test_bits_are_those_of_each_sequence_alone(bundle):
    random = torch.Generator().manual_seed(0)
    size = bundle.config.tokens.semantic_vocabulary
    tokens = [torch.randint(size, (length,), generator=random) for length in (7, 12, 7, 3)]
    together = words.token_bits(bundle, tokens)
    assert [len(bits) for bits in together] == [7, 12, 7, 3]
    for one, bits in zip(tokens, together, strict=True):
        assert words.token_bits(bundle, [one])[0] == pytest.approx(bits, abs=1e-3)
        assert words.token_bits(bundle, [one[:2]])[0] == pytest.approx(bits[:2], abs=1e-3)
    assert 0.5 * np.log2(size) < np.mean(np.concatenate(together)) < 4 * np.log2(size)  # it knows nothing


def test_preference_is_counted_by_voice_and_by_pair(bundle, monkeypatch):
    pair = Pair(("cover", "whether"), (COVER, WHETHER), words.exchanged(COVER, WHETHER) or ((), ()))
    bits = {COVER: [1, 1], WHETHER: [5, 5], pair.pseudo[0]: [2, 2, 2], pair.pseudo[1]: [3, 3, 3, 3]}
    order = [*pair.real, *pair.pseudo]
    monkeypatch.setattr(words, "token_bits", lambda bundle, tokens: [np.array(bits[p], float) for p in order])
    table = words.preferences(bundle, [pair], ["a", "b"], said)
    assert list(table) == ["a", "b", "all voices"]
    for row in table.values():
        assert row["words preferred"].mean == 1.0  # 2 < 6 and 10 < 12
        assert row["by mean bits"].mean == 0.5  # 1 < 2 and 5 > 3
        assert row["pairs"] == 1
    bits[COVER], bits[WHETHER] = [2, 2, 2], [13]
    row = words.preferences(bundle, [pair], ["a"], said)["a"]
    assert row["words preferred"].mean == 0.25  # a tie and a loss


def test_an_untrained_model_prefers_nothing_much(bundle):
    random = np.random.default_rng(0)
    consonants = [f"c{n}" for n in range(20)]
    made = []
    for n in range(12):
        one, other = (
            (str(random.choice(consonants)), v, str(random.choice(consonants)), "er0") for v in ("ah1", "eh1")
        )
        pseudo = words.exchanged((*one[:2], "x", one[3]), other)
        assert pseudo
        made.append(Pair((f"a{n}", f"b{n}"), ((*one[:2], "x", one[3]), other), pseudo))
    row = words.preferences(bundle, made, ["a"], said)["a"]
    assert 0.1 < row["words preferred"].mean < 0.9
    assert row["words preferred"].low <= row["words preferred"].mean <= row["words preferred"].high


def test_what_was_said_is_kept(tmp_path):
    calls = []

    def speak(voice, spoken):
        calls.append(voice)
        return said(voice, spoken)

    recall = words.kept(speak, tmp_path)
    first, second = recall("a", COVER), recall("a", COVER)
    assert calls == ["a"]
    assert np.array_equal(first, second)
    assert first == pytest.approx(said("a", COVER), abs=1e-4)
    assert (tmp_path / "a" / "k-ah1-v-er0.wav").is_file()


def test_without_flite_there_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert words.flite_missing()
    anything: Any = None
    with pytest.raises(InputError, match="flite is not installed: no word test"):
        words.word_table(anything, corpus(), tmp_path)


@needs_flite
def test_phones_say_what_the_spelling_says():
    found = words.flite_phones("water", [plain(WATER)])
    assert found == WATER
    assert words.flite_phones("return", [phones("r ih t er n"), phones("r iy t er n")]) == phones("r ih0 t er1 n")
    assert words.flite_phones("water", [plain(MONEY)]) is None  # another pronunciation than the dictionary's


@needs_flite
def test_flite_speaks_with_the_same_silence_around_all(tmp_path):
    long, short = (words.say_phones("kal16", spoken) for spoken in (phones("k ax0 m p y uw1 t er0"), WATER))
    assert len(long) > len(short) > words.LEAD + words.TAIL
    for samples in (long, short):
        assert samples.dtype == np.float32
        assert np.abs(samples[: words.LEAD // 2]).max() < 0.02 < np.abs(samples).max()
    with pytest.raises(InputError, match="cannot say"):
        words.say_phones("kal16", phones("w ao1 xx er0"))


@pytest.mark.slow
@needs_flite
def test_the_whole_test_on_a_few_words(bundle, tmp_path):
    pytest.importorskip("pocketsphinx", reason="needs the extra 'eval'")
    texts = corpus("cover whether money water billy future nature never public minutes")
    table = words.word_table(bundle, texts, tmp_path, count=2, voices=["kal16"])
    assert list(table) == ["kal16", "all voices"]
    assert table["kal16"]["pairs"] == 2
    assert 0 <= table["kal16"]["words preferred"].mean <= 1
    assert (tmp_path / "words" / "phones.json").is_file()
    assert table == words.word_table(bundle, texts, tmp_path, count=2, voices=["kal16"])
