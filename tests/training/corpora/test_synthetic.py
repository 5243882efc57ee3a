"""Synthetic speech: what is taken from a book, how it is read, and the corpus that comes of it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from audiolm_cli.audio import files
from audiolm_cli.errors import InputError
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora import synthetic
from audiolm_cli.training.corpora.data import load_corpus
from audiolm_cli.training.corpora.synthetic import Passage


def noise(text: str, speed: float, seed: int) -> np.ndarray:
    """Stands in for an engine: as long as the text is, and different for each."""
    random = np.random.default_rng(seed)
    return (0.1 * random.standard_normal(round(len(text) * RATE / 15 / speed))).astype(np.float32)


def unwanted(text: str, speed: float, seed: int) -> np.ndarray:
    raise AssertionError("spoken again")


def said(passages: list[Passage]) -> list[str]:
    return [sentence for p in passages for line in p.paragraphs for sentence in synthetic.sentences(line)]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Two books of forty paragraphs, by two authors."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for book in ("one", "two"):
        lines = [f"The {book} tells {'again and ' * (n % 9)}again of house number {n}. It is old." for n in range(40)]
        (folder / f"{book}.txt").write_text("A HEADING\n\n" + "\n\n".join(lines) + "\n")
    rows = ["file\ttitle\tauthor", "one.txt\tOne\tAn Author", "two.txt\tTwo\tSomebody Else"]
    (folder / "SOURCES.tsv").write_text("\n".join(rows))
    return folder


def test_sentences_end_where_people_end_them():
    assert synthetic.sentences("“It was cold,” said Mr. J. Smith. He _was_ tired! “Why?” “No.” So it… seemed.") == [
        "“It was cold,” said Mr. J. Smith.",
        "He was tired!",
        "“Why?”",
        "“No.”",
        "So it… seemed.",
    ]


def test_every_sentence_is_in_one_passage_in_order(texts: Path):
    lines = (texts / "one.txt").read_text().splitlines()
    wanted = [sentence for line in lines if line and not line.isupper() for sentence in synthetic.sentences(line)]
    found = [passage for passage in synthetic.passages(texts) if passage.book == "one"]
    assert said(found) == wanted
    assert len({passage.path for passage in found}) == len(found)
    assert all(synthetic.PASSAGE[0] <= sum(map(len, p.paragraphs)) <= synthetic.PASSAGE[1] for p in found[:-1])


def test_a_long_paragraph_is_cut_at_sentences(tmp_path: Path):
    sentences = [f"Sentence number {n} says nothing new, and takes its time to do so." for n in range(60)]
    (tmp_path / "a.txt").write_text(" ".join(sentences))
    found = synthetic.passages(tmp_path)
    assert len(found) > 3
    assert said(found) == sentences
    assert [passage.first for passage in found] == list(np.cumsum([0, *(len(said([p])) for p in found[:-1])]))


def test_what_a_transcript_says_is_not_read(texts: Path):
    forbidden = synthetic.ngrams(["so the one tells again and again of house he said"])
    assert len(forbidden) == 5
    every, found = said(synthetic.passages(texts)), said(synthetic.passages(texts, forbidden))
    shared = [f"The one tells again and again of house number {n}." for n in (1, 10, 19, 28, 37)]  # seven words of it
    assert [sentence for sentence in every if sentence not in found] == shared
    assert all(
        forbidden.isdisjoint(synthetic.ngrams([" ".join(passage.paragraphs)]))
        for passage in synthetic.passages(texts, forbidden)
    )


def test_words_are_compared_without_case_and_punctuation():
    assert synthetic.words_of("“Don’t go,” said Mr. Smith; the boys’ dog is 5!") == (
        ["don't", "go", "said", "mr", "smith", "the", "boys", "dog", "is", "5"]
    )


def test_books_of_held_out_authors_are_for_validation(texts: Path):
    books = synthetic.held_out_books(texts, ["Somebody Else"])
    assert books == {"two"}
    splits = {(passage.book, passage.split) for passage in synthetic.passages(texts, held_out=books)}
    assert splits == {("one", "train"), ("two", "valid")}
    with pytest.raises(InputError, match="no author 'Nobody'"):
        synthetic.held_out_books(texts, ["Nobody"])


def test_the_corpus_is_what_was_read(texts: Path, tmp_path: Path):
    found = synthetic.passages(texts, held_out=frozenset({"two"}))
    out = tmp_path / "out"
    seconds = synthetic.make(found, out, 100, noise, "engine")
    clips = {split: load_corpus(out, split, RATE, tmp_path / "cache").clips for split in ("train", "valid")}
    assert {clip.path for group in clips.values() for clip in group} == {passage.path for passage in found}
    assert all(clip.path.startswith("two/") for clip in clips["valid"])
    assert {(c.corpus, c.speaker) for group in clips.values() for c in group} == {("synthetic", "engine")}
    assert sum(c.samples for group in clips.values() for c in group) == pytest.approx(seconds * RATE, rel=1e-3)
    texts_by_path = {p.path: " ".join(synthetic.words_of(" ".join(p.paragraphs))) for p in found}
    assert all(clip.text == texts_by_path[clip.path] for clip in clips["train"])


def test_what_was_broken_off_goes_on(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(synthetic, "LISTED", 3)
    found, out = synthetic.passages(texts), tmp_path / "out"
    first = synthetic.make(found, out, 0.01, noise, "engine")
    before = {file: file.read_bytes() for file in out.rglob("*.ogg")}
    assert 0 < len(before) < len(found)
    assert synthetic.make(found, out, 0.01, unwanted, "engine") == pytest.approx(first, rel=1e-3)
    assert synthetic.make(found, out, 100, noise, "engine") > first
    assert all(file.read_bytes() == data for file, data in before.items())


def test_paragraphs_are_parted_by_pauses_and_the_level_is_set(tmp_path: Path):
    passage = Passage("a", 0, ("One paragraph of some words.", "And another one of some more."), "train")
    seconds = synthetic.record(tmp_path, noise, passage)
    samples = files.read(tmp_path / passage.path, RATE).samples
    assert len(samples) == pytest.approx(seconds * RATE, abs=2)
    quiet = np.abs(samples[: len(samples) // 800 * 800].reshape(-1, 800)).max(1) < 0.01
    assert 0.2 < quiet.sum() * 0.05 < 0.9
    assert np.sqrt(np.mean(np.square(samples))) == pytest.approx(synthetic.LEVEL, rel=0.15)  # Vorbis adds to noise


def test_wrong_folders_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty").mkdir()
    arguments = ["synthetic", "--text", str(tmp_path / "empty"), "--out", str(tmp_path / "out")]
    for more, message in (([], "no \\*.txt"), (["--data", str(tmp_path)], "no manifest.tsv")):
        monkeypatch.setattr(sys, "argv", arguments + more)
        with pytest.raises(SystemExit, match=message):
            synthetic.main()


@pytest.mark.slow
def test_the_engine_reads(tmp_path: Path):
    pytest.importorskip("hibari", reason="hibari-tts is not installed (extra `speak`)")
    passage = Passage("a", 0, ("It was a bright cold day, said Mr. Smith.",), "train")
    assert 1.5 < synthetic.record(tmp_path, synthetic.hibari, passage) < 6
    again = tmp_path / "again"
    synthetic.record(again, synthetic.hibari, passage)
    one, other = (files.read(folder / passage.path, RATE).samples for folder in (tmp_path, again))
    assert np.array_equal(one, other)
