"""The corpus cache is whole whoever writes it at the same time; the halves of a split are even."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiolm_cli.audio import files
from audiolm_cli.training.corpora.data import HALVES, Clip, Corpus, half, load_corpus

RATE = 16000


def test_a_process_that_begins_to_decode_disturbs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = [np.full(RATE, level, np.float32) for level in (0.25, 0.5)]
    lines = ["path\tsplit\tspeaker\n"]
    for number, samples in enumerate(recordings):
        soundfile.write(tmp_path / f"{number}.wav", samples, RATE)
        lines.append(f"{number}.wav\ttrain\tone\n")
    (tmp_path / "manifest.tsv").write_text("".join(lines))
    numbers, read = itertools.count(1), files.read
    monkeypatch.setattr(os, "getpid", lambda: next(numbers))

    def broken_off(path: Path, rate: int) -> Any:
        raise KeyboardInterrupt

    def disturbed(path: Path, rate: int) -> Any:
        if path.name == "1.wav":
            monkeypatch.setattr(files, "read", broken_off)
            with pytest.raises(KeyboardInterrupt):
                load_corpus(tmp_path, "train", RATE, tmp_path / "cache")
        return read(path, rate)

    monkeypatch.setattr(files, "read", disturbed)
    corpus = load_corpus(tmp_path, "train", RATE, tmp_path / "cache")
    for clip, samples in zip(corpus.clips, recordings, strict=True):
        np.testing.assert_allclose(corpus.samples(clip), samples, atol=1e-4)


def made_up(amounts: dict[tuple[str, str, str], list[int]]) -> Corpus:
    """Clips of those lengths, by corpus, sex and speaker."""
    clips = [Clip("", who, name, "", 0, n, sex) for (name, sex, who), lengths in amounts.items() for n in lengths]
    return Corpus(np.zeros(0, np.int16), clips)


def test_halves_share_no_speaker_and_are_even_in_every_kind() -> None:
    random = np.random.default_rng(0)
    amounts = {
        (name, sex, f"{name}{sex}{n}"): random.integers(1, 100, 3).tolist()
        for name, sex, count in (("read", "f", 10), ("read", "m", 8), ("spoken", "", 21))
        for n in range(count)
    }
    corpus = made_up(amounts)
    halves = [half(corpus, name) for name in HALVES]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == {who for _, _, who in amounts}
    for name, sex, least in (("read", "f", 5), ("read", "m", 4), ("spoken", "", 10)):
        people = [sum(who in chosen for n, s, who in amounts if (n, s) == (name, sex)) for chosen in halves]
        assert min(people) == least
        assert max(people) - min(people) <= 1
    first, second = (sum(sum(lengths) for (_, _, who), lengths in amounts.items() if who in h) for h in halves)
    assert abs(first - second) < 0.05 * (first + second)


def test_halves_do_not_depend_on_the_order_of_recordings() -> None:
    amounts = {("a", "", f"s{n}"): [10, 20] for n in range(9)}
    backwards = dict(reversed(list(amounts.items())))
    assert [half(made_up(amounts), name) for name in HALVES] == [half(made_up(backwards), name) for name in HALVES]


def test_the_manifest_says_the_sex_of_speakers(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE, np.float32), RATE)
    (tmp_path / "manifest.tsv").write_text("path\tsplit\tspeaker\tsex\na.wav\tvalid\tone\tf\n")
    for _ in ("written", "read"):
        (clip,) = load_corpus(tmp_path, "valid", RATE, tmp_path / "cache").clips
        assert clip.sex == "f"
