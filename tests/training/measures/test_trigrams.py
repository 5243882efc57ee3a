"""The trigram model is a distribution, and knows its texts from others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from audiolm_cli.errors import InputError
from audiolm_cli.training.measures import trigrams
from audiolm_cli.training.measures.trigrams import Trigrams, perplexity, unheard

TEXT = ["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "sat", "on", "the", "rug"]


@pytest.mark.parametrize("history", [(), ("the",), ("on", "the"), ("dog", "the"), ("unknown", "words")])
def test_probabilities_of_all_words_add_up_to_one(history: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigrams, "VOCABULARY", 20)
    model, known = Trigrams([TEXT, ["the"]]), sorted(set(TEXT))
    unknown = (20 - len(known)) * model.probability(history, "unknown")
    assert sum(model.probability(history, word) for word in known) + unknown == pytest.approx(1)


def test_probabilities_are_those_of_witten_and_bell() -> None:
    model = Trigrams([["a", "b", "a", "b", "a", "c"]])
    unigram = (2 + 3 / trigrams.VOCABULARY) / (6 + 3)
    bigram = (2 + 2 * unigram) / (3 + 2)  # b and c follow a
    assert model.probability(("a",), "b") == pytest.approx(bigram)
    assert model.probability(("b", "a"), "b") == pytest.approx((1 + 2 * bigram) / (2 + 2))
    assert model.probability(("z", "a"), "b") == pytest.approx(bigram)  # of a history that it does not know


def test_each_word_is_told_by_the_two_before_it() -> None:
    model = Trigrams([TEXT])
    bits = model.bits(["on", "the", "mat"])
    expected = [((), "on"), (("on",), "the"), (("on", "the"), "mat")]
    assert bits.tolist() == [-np.log2(model.probability(*each)) for each in expected]
    assert model.bits([]).shape == (0,)


def test_texts_do_not_run_into_each_other() -> None:
    apart, together = Trigrams([["a", "b"], ["c", "d"]]), Trigrams([["a", "b", "c", "d"]])
    assert apart.probability(("b",), "c") == apart.probability((), "c")
    assert together.probability(("b",), "c") > together.probability((), "c")


def test_perplexity_tells_language_from_babble_and_known_words_in_disorder() -> None:
    model = Trigrams([TEXT])
    said, disorder, babble = (
        perplexity(model, [("a", words), ("b", [])]).mean for words in (TEXT, TEXT[::-1], ["ba", "du"] * 6)
    )
    assert said < 3 < 8 < disorder < 100 < babble
    assert np.isnan(perplexity(model, [("a", [])]).mean)


def test_perplexity_averages_bits_over_speakers() -> None:
    model = Trigrams([TEXT])
    one, other = (2 ** float(model.bits([word]).mean()) for word in ("the", "cat"))
    found = perplexity(model, [("a", ["the"]), ("a", ["the"]), ("b", ["cat"])])
    assert found.mean == pytest.approx((one * other) ** 0.5)
    assert found.low == pytest.approx(min(one, other))


def test_only_held_out_books_that_say_no_transcript_teach_the_model(tmp_path: Path) -> None:
    rows = ["file\ttitle\tauthor\tyear", "read.txt\tA\tJane Austen\t1813"]
    rows += ["horse.txt\tB\tAnna Sewell\t1877", "plains.txt\tC\tWilla Cather\t1913"]
    (tmp_path / "SOURCES.tsv").write_text("\n".join(rows))
    (tmp_path / "read.txt").write_text("This was read aloud.")
    (tmp_path / "horse.txt").write_text("The first place.\nOne two three four five six seven, eight.")
    (tmp_path / "plains.txt").write_text("One January day.")
    found = unheard(tmp_path, ["zero one two three four five six seven"])
    assert sorted(found) == [["one", "january", "day"], ["the", "first", "place"]]
    (tmp_path / "SOURCES.tsv").unlink()
    with pytest.raises(InputError, match="no books that are held out"):
        unheard(tmp_path, [])
