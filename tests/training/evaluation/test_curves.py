"""Training curves as a picture."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from audiolm_cli.training.evaluation import curves

LINES = [
    {"step": 1, "seconds": 60, "bits": 9.0, "loss": 6.2},
    {"step": 2, "seconds": 120, "valid": True, "bits": 8.5},
    {"step": 3, "seconds": 180, "bits": 8.0},
]


def test_training_and_validation_are_told_apart(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    assert curves.curves(log, "bits", "bits") == (([1.0, 3.0], [9.0, 8.0]), ([2.0], [8.5]))
    assert curves.curves(log, "loss", "bits") == (([1.0], [6.2]), ([2.0], [8.5]))


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_the_parts_that_have_a_log_are_drawn(tmp_path: Path) -> None:
    for part in ("coarse", "semantic"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "log.jsonl").write_text(json.dumps(LINES[0]) + "\n" + json.dumps(LINES[1]))
    assert curves.draw(tmp_path, tmp_path / "a.png") == ["semantic", "coarse"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert curves.draw(tmp_path / "coarse", tmp_path / "b.png") == []
    assert not (tmp_path / "b.png").exists()
