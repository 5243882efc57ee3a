"""The corpus cache is whole whoever writes it at the same time."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiolm_cli import audio
from audiolm_cli.training.data import load_corpus

RATE = 16000


def test_a_process_that_begins_to_decode_disturbs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = [np.full(RATE, level, np.float32) for level in (0.25, 0.5)]
    lines = ["path\tsplit\tspeaker\n"]
    for number, samples in enumerate(recordings):
        soundfile.write(tmp_path / f"{number}.wav", samples, RATE)
        lines.append(f"{number}.wav\ttrain\tone\n")
    (tmp_path / "manifest.tsv").write_text("".join(lines))
    numbers, read = itertools.count(1), audio.read
    monkeypatch.setattr(os, "getpid", lambda: next(numbers))

    def broken_off(path: Path, rate: int) -> Any:
        raise KeyboardInterrupt

    def disturbed(path: Path, rate: int) -> Any:
        if path.name == "1.wav":
            monkeypatch.setattr(audio, "read", broken_off)
            with pytest.raises(KeyboardInterrupt):
                load_corpus(tmp_path, "train", RATE, tmp_path / "cache")
        return read(path, rate)

    monkeypatch.setattr(audio, "read", disturbed)
    corpus = load_corpus(tmp_path, "train", RATE, tmp_path / "cache")
    for clip, samples in zip(corpus.clips, recordings, strict=True):
        np.testing.assert_allclose(corpus.samples(clip), samples, atol=1e-4)
