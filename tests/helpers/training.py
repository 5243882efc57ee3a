"""Training programs run in the test's process, what they leave behind, and voices to train on."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from audiolm_cli.training import trainer


def run(module: str, *arguments: object) -> None:
    """What `python -m module arguments` does, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module, *map(str, arguments)])
        importlib.import_module(module).main()


def voice(speaker: int, clip: int, seconds: float) -> np.ndarray:
    """float32 [T]: a harmonic tone at the speaker's pitch whose loudness and brightness change, and some noise."""
    random = np.random.default_rng(100 * speaker + clip)
    time = np.arange(round(seconds * 16000)) / 16000
    pitch = 2 * np.pi * (100 + 30 * speaker) * (time + 0.002 * np.sin(6 * np.pi * time))
    size = np.interp(5 * time, np.arange(5 * seconds + 1), random.uniform(0, 1, round(5 * seconds) + 1))
    tone = np.sum([np.sin(n * pitch) / n * size**n for n in range(1, 8)], axis=0)
    return (0.1 * tone + 0.01 * random.standard_normal(len(time))).astype(np.float32)


def steps(folder: Path, name: str) -> int:
    return trainer.load_checkpoint(folder / name)["step"]


def log(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
