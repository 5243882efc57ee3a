"""Synthetic speech: what is taken from a book, who reads it, and the corpus that comes of it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from audiolm_cli import audio
from audiolm_cli.errors import InputError
from audiolm_cli.training import synthetic
from audiolm_cli.training.data import load_corpus
from audiolm_cli.training.synthetic import RATE, Voice

BOOK = """\
Produced by nobody for Project Gutenberg

*** START OF THE PROJECT GUTENBERG EBOOK ***

CHAPTER I

Chapter 2. A heading.

“It was a bright cold day,” said Mr. Smith, who had
come from the station on foot. He was tired. The
clocks were striking thirteen—or so it seemed to all of us.

[Illustration: a clock. It has hands and it has a face.]

There were 39 steps from the door to the garden, and nobody counted them.

A line that has no end

This is a sentence of two long parts, of which the first one reaches up to the semicolon, as anyone can see who reads;
and the second one reaches up to the full stop, far away at the end of everything that is said here.

*** END OF THE PROJECT GUTENBERG EBOOK ***
This is the licence, which nobody reads aloud, and no voice should do so here.
"""


def noise(voice: Voice, sentence: str) -> np.ndarray:
    """Stands in for `speak`: as long as the sentence is, and different for every voice."""
    random = np.random.default_rng([ord(letter) for letter in voice.speaker + sentence])
    return (0.1 * random.standard_normal(len(sentence) * RATE // 15)).astype(np.float32)


def unwanted(voice: Voice, sentence: str) -> np.ndarray:
    raise AssertionError("spoken again")


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Two books of forty sentences of five to seven seconds, the first of which occurs in both."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for book in ("one", "two"):
        some = [
            f"The {book} tells {'again and ' * (n % 4)}again of the {'very ' * (n // 4)}old house and its garden."
            for n in range(40)
        ]
        (folder / f"{book}.txt").write_text(
            "This very sentence stands in both of the books that there are.\n\n" + " ".join(some)
        )
    return folder


def test_sentences_leave_out_what_nobody_reads_aloud():
    assert list(synthetic.sentences(BOOK)) == [
        "It was a bright cold day, said Mr. Smith, who had come from the station on foot.",
        "He was tired. The clocks were striking thirteen, or so it seemed to all of us.",
        "This is a sentence of two long parts, of which the first one reaches up to the semicolon, "
        "as anyone can see who reads;",
        "and the second one reaches up to the full stop, far away at the end of everything that is said here.",
    ]


def test_transcripts_are_words_alone():
    assert synthetic.transcript("Don't go, said Mr. Smith; the boys' dog is here!") == (
        "don't go said mr smith the boys dog is here"
    )


def test_every_sentence_is_in_one_passage(texts):
    found = synthetic.passages(texts)
    spoken = [sentence for passage in found for sentence in passage.sentences]
    assert len(spoken) == len(set(spoken)) == 81
    assert max(len(passage.sentences) for passage in found) == synthetic.PASSAGE


def test_a_passage_is_read_by_one_voice_and_stays_in_its_split(texts, monkeypatch):
    monkeypatch.setattr(synthetic, "VALID", 3)
    found = synthetic.passages(texts)
    plan = list(synthetic.readings(found, 0))
    assert len(plan) == synthetic.READINGS * 81
    assert plan == list(synthetic.readings(found, 0))
    assert plan != list(synthetic.readings(found, 1))
    splits: dict[str, set[str]] = {}
    for reading in plan:
        splits.setdefault(reading.sentence, set()).add(reading.split)
    assert all(len(used) == 1 for used in splits.values())
    assert set.union(*splits.values()) == {"train", "valid"}
    for start in range(0, len(plan), 81):
        voice = {reading.sentence: reading.voice for reading in plan[start : start + 81]}
        assert all(len({voice[sentence] for sentence in passage.sentences}) == 1 for passage in found)
    engines = {reading.voice.engine for reading in plan}
    assert engines == {"flite", "espeak-ng"}


def test_voices_have_different_names_and_files_tell_what_is_in_them(texts):
    everyone = [voice for group in synthetic.voices(0).values() for voice in group]
    assert len({voice.speaker for voice in everyone}) == len(everyone) > 80
    plan = list(synthetic.readings(synthetic.passages(texts), 0))
    contents = {reading.path: (reading.voice, reading.sentence) for reading in plan}
    assert all(contents[reading.path] == (reading.voice, reading.sentence) for reading in plan)


def test_the_corpus_is_what_training_reads(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "VALID", 3)
    seconds = synthetic.make(texts, tmp_path / "out", 600 / 3600, say=noise)
    assert 600 <= seconds < 612
    both = {split: load_corpus(tmp_path / "out", split, RATE, tmp_path / "cache") for split in ("train", "valid")}
    clips = [clip for corpus in both.values() for clip in corpus.clips]
    assert sum(clip.samples for clip in clips) / RATE == pytest.approx(seconds, abs=0.1)
    assert {clip.corpus for clip in clips} == {"synthetic"}
    assert not {clip.text for clip in both["train"].clips} & {clip.text for clip in both["valid"].clips}
    assert all(clip.path.startswith(f"{clip.speaker}/") and clip.text.islower() for clip in clips)
    assert len({clip.path for clip in clips}) == len(clips)


def test_what_is_there_is_kept_and_more_can_be_added(texts, tmp_path):
    out = tmp_path / "out"
    synthetic.make(texts, out, 100 / 3600, say=noise)
    few = (out / "manifest.tsv").read_text()
    synthetic.make(texts, out, 100 / 3600, say=unwanted)
    assert (out / "manifest.tsv").read_text() == few
    synthetic.make(texts, out, 200 / 3600, say=noise)
    assert (out / "manifest.tsv").read_text().startswith(few)


def test_several_processes_make_the_same(texts, tmp_path):
    for count in (1, 2):
        synthetic.make(texts, tmp_path / str(count), 60 / 3600, processes=count, say=noise)
    one, two = (sorted((tmp_path / name).rglob("*.*")) for name in "12")
    assert (tmp_path / "1" / "manifest.tsv").read_text() == (tmp_path / "2" / "manifest.tsv").read_text()
    assert {file.relative_to(tmp_path / "1") for file in one} <= {file.relative_to(tmp_path / "2") for file in two}


def test_what_lasts_too_long_is_left_out(tmp_path):
    reading = synthetic.Reading("a/b.flac", "train", Voice("flite", "slt"), "x" * 400)
    assert synthetic.record(tmp_path, reading, noise) == 0
    assert not list(tmp_path.iterdir())


def test_short_texts_end_before_the_hours(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "READINGS", 1)
    assert 200 < synthetic.make(texts, tmp_path / "out", 100, say=noise) < 700


def test_errors_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"no \*\.txt"):
        synthetic.passages(tmp_path)
    arguments = ["synthetic", "--text", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="synthetic: flite and espeak-ng not installed"):
        synthetic.main()
    monkeypatch.setattr(shutil, "which", lambda name: name)
    with pytest.raises(SystemExit, match="sentences to read"):
        synthetic.main()


@pytest.mark.parametrize(
    "voice",
    [Voice("flite", "kal16", 0.9), Voice("flite", "slt", 1.1, 14400), Voice("espeak-ng", "en-us+f2", 1.1, pitch=60)],
)
def test_real_voices_speak(voice, tmp_path):
    if shutil.which(voice.engine) is None:
        pytest.skip(f"needs {voice.engine}")
    sentence = "Alice was beginning to get very tired of sitting by her sister on the bank."
    samples = synthetic.speak(voice, sentence)
    assert samples.dtype == np.float32
    assert 3 < len(samples) / RATE < 8
    assert np.abs(samples).max() <= synthetic.PEAK + 1e-3
    assert 0.4 * synthetic.LEVEL < np.sqrt(np.mean(np.square(samples))) < 1.01 * synthetic.LEVEL
    reading = synthetic.Reading("a/b.flac", "train", voice, sentence)
    assert synthetic.record(tmp_path, reading) == pytest.approx(len(samples) / RATE)
    assert audio.read(tmp_path / "a" / "b.flac", RATE).samples == pytest.approx(samples, abs=1e-4)


def test_voices_that_cannot_speak_say_so():
    if shutil.which("espeak-ng") is None:
        pytest.skip("needs espeak-ng")
    with pytest.raises(InputError, match="espeak-ng cannot say"):
        synthetic.speak(Voice("espeak-ng", "xyzzy"), "Hello.")
