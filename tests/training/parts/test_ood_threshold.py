"""The script that says from how many bits on a recording is strange to a bundle."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file

from audiolm_cli.bundles.bundle import read_about, write_tensors
from audiolm_cli.bundles.folder import read_config
from audiolm_cli.config import preset
from audiolm_cli.training.corpora.data import Clip, Corpus
from audiolm_cli.training.parts import ood_threshold
from audiolm_cli.training.parts.assemble import assemble
from tests.helpers.bundles import write_parts


def corpus(folder: Path, sound: np.ndarray) -> Path:
    folder.mkdir()
    soundfile.write(folder / "a.wav", sound, 16000)
    (folder / "manifest.tsv").write_text("path\tsplit\tspeaker\na.wav\tvalid\ta\n")
    return folder


def test_prompts_come_from_within_recordings_that_are_long_enough() -> None:
    clips = [Clip("a", "a", "", "", 0, 100), Clip("b", "b", "", "", 100, 5)]
    found = list(ood_threshold.prompts(Corpus(np.arange(105).astype(np.int16), clips), 10, 50))
    assert len(found) == 50
    starts = [round(float(prompt[0]) * 32768) for prompt in found]
    assert all(0 <= start <= 90 for start in starts)
    assert len(set(starts)) > 10


def test_limits_are_of_both_kinds() -> None:
    found = np.stack([np.linspace(5, 10, 101), np.linspace(3, 4, 101)], 1)
    limits = ood_threshold.limits(found)
    assert limits == pytest.approx((9.95, 2.61))
    assert ood_threshold.beyond(found, limits) == pytest.approx(1 / 101)
    assert ood_threshold.beyond(np.array([[7.0, 2.0], [11.0, 3.5], [7.0, 3.0], [6.0, 2.7]]), limits) == 0.5


def test_it_prints_the_limit_and_what_is_above_it(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    own, other = (corpus(tmp_path / name, rng.uniform(-s, s, 80000)) for name, s in (("own", 0.1), ("other", 0.9)))
    arguments = ["--model", tiny_bundle, "--data", own, "--runs", tmp_path / "1", "--prompts", 20]
    arguments += ["--other", other, "--other-runs", tmp_path / "2"]
    monkeypatch.setattr(sys, "argv", ["familiar", *map(str, arguments)])
    ood_threshold.main()
    found = json.loads(capsys.readouterr().out)
    assert found["median"] <= found["familiar_bits"]
    assert found["familiar_semantic_bits"] >= 0
    assert 0 <= found["other_beyond"] <= 1
    assert found["other_median"] != found["median"]


THRESHOLDS = {"familiar_bits": 9.0, "familiar_semantic_bits": 3.0}


def thresholds(folder: Path) -> tuple[float, float]:
    config = read_config(folder)
    return config.familiar_bits, config.familiar_semantic_bits


@pytest.mark.parametrize(("part", "kept"), [("semantic", False), ("coarse", False), ("fine", True)])
def test_assembly_drops_the_thresholds_of_other_language_models(tmp_path: Path, part: str, kept: bool) -> None:
    parts, out = tmp_path / "parts", tmp_path / "tiny"
    write_parts(parts, dataclasses.replace(preset("tiny"), detector=None))
    assemble(parts, "tiny", out, {**THRESHOLDS, "prompt_seconds": 2.0})
    assemble(parts, "tiny", out)
    assert thresholds(out) == (9.0, 3.0)
    file = parts / f"{part}.safetensors"
    tensors, about = load_file(file), {"about": json.dumps(read_about(file))}
    tensors["norm.weight"] = tensors["norm.weight"] + 1
    write_tensors(file, tensors, about)
    assemble(parts, "tiny", out)
    assert thresholds(out) == ((9.0, 3.0) if kept else (0.0, 0.0))
    assert read_config(out).prompt_seconds == 2.0
    assemble(parts, "tiny", out, THRESHOLDS)
    assert thresholds(out) == (9.0, 3.0)


def test_assembly_drops_the_thresholds_of_another_tokenizer(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_parts(tmp_path / str(seed), dataclasses.replace(preset("tiny"), detector=None), seed)
    assemble(tmp_path / "0", "tiny", tmp_path / "tiny", THRESHOLDS)
    assemble(tmp_path / "1", "tiny", tmp_path / "tiny")
    assert thresholds(tmp_path / "tiny") == (0.0, 0.0)
