"""Tokens of MIDI performances that nobody rendered."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from audiolm_cli.bundles.bundle import save_part
from audiolm_cli.config import TokenSpec, preset
from audiolm_cli.tokenizer.semantic import SemanticTokenizer
from audiolm_cli.training.corpora.tokenize import load_part, load_tokens
from audiolm_cli.training.parts.note_teacher import APART, DIMENSIONS, HIGHEST, LOWEST
from audiolm_cli.training.parts.student import Clusters
from tests.helpers.training import run
from tests.training.corpora.test_piano import key, midi

KEYS = 88


def classes() -> torch.Tensor:
    """Two classes without an attack, and one of each key alone."""
    centroids = torch.zeros(2 + KEYS, DIMENSIONS)
    centroids[1, 1] = -1.0
    centroids[2:, 0] = APART
    centroids[torch.arange(KEYS) + 2, torch.arange(KEYS) + 1] = HIGHEST
    return centroids


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A tokenizer and the clusters that it learnt."""
    spec = TokenSpec(codebook_size=32, semantic_vocabulary=2 + KEYS)
    config = dataclasses.replace(preset("tiny").tokenizer, units="classes")
    about = {"config": dataclasses.asdict(config), "tokens": dataclasses.asdict(spec), "trained": {}}
    for folder in ("parts", "teacher"):
        (tmp_path / folder).mkdir()
    save_part(tmp_path / "parts" / "tokenizer.safetensors", SemanticTokenizer(config, spec), about, ())
    clusters = Clusters(torch.zeros(DIMENSIONS), torch.ones(DIMENSIONS), {2 + KEYS: classes()})
    clusters.save(tmp_path / "teacher" / "clusters.safetensors")
    return tmp_path


def test_performances_become_tokens_in_other_keys(runs: Path, tmp_path: Path) -> None:
    scale = [event for n in range(40) for event in key(1000 + 400 * n, 1300 + 400 * n, 60 + n % 12)]
    midi(tmp_path / "midi" / "some" / "satie" / "a.mid", *scale)
    midi(tmp_path / "midi" / "some" / "ravel" / "b.mid", *scale)
    run("audiolm_cli.training.corpora.played", "--data", tmp_path, "--runs", runs, "--passes", 3)
    written = {file: file.stat().st_mtime_ns for file in (runs / "tokens").iterdir()}
    run("audiolm_cli.training.corpora.played", "--data", tmp_path, "--runs", runs, "--passes", 3)
    assert {file: file.stat().st_mtime_ns for file in (runs / "tokens").iterdir()} == written  # what is there is kept
    (valid,), train = load_tokens(runs, "synthetic-valid"), load_tokens(runs, "synthetic")
    assert [[track.speaker for track in some.tracks] for some in (valid, *train)] == [
        ["ravel-b/0"], ["satie-a/100"], ["satie-a/101"], ["satie-a/102"],
    ]  # fmt: skip
    assert valid.sources == {"tokenizer": load_part(runs, "tokenizer")[1]}
    melody = [60 + n % 12 for n in range(40)]
    keys = valid.semantic[valid.semantic >= 2] - 2 + LOWEST
    assert keys.tolist() == melody
    moves = set()
    for some in train:
        keys = some.semantic[some.semantic >= 2] - 2 + LOWEST
        (move,) = set((keys - torch.tensor(melody)).tolist())
        moves.add(move)
        assert len(some.semantic) != len(valid.semantic)
    assert len(moves) > 1
    assert max(map(abs, moves)) <= 5
