"""The steps of a recipe: which programs it runs, in order, with which options."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from unittest.mock import Mock

import pytest

from audiolm_cli.training import run as whole_run
from audiolm_cli.training.recipes import RECIPES
from tests.helpers.training import run


def test_the_recipe_of_a_bundle_without_stage_3_goes_on_from_another_codec(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(whole_run, "subprocess", types.SimpleNamespace(run=lambda command, check: ran.append(command)))
    assembled = Mock()
    monkeypatch.setattr(whole_run, "assemble", assembled)
    common = ("--data", tmp_path / "data", "--runs", tmp_path / "runs", "--out", tmp_path / "piano", "--minutes", 210)
    with pytest.raises(SystemExit):
        run("audiolm_cli.training.run", "piano", *common, "--from-codec", tiny_bundle)
    run("audiolm_cli.training.run", "piano", *common, "--from-codec", tiny_bundle, "--midi", tmp_path / "midi")
    assert [path.name for path in (tmp_path / "runs" / "parts").iterdir()] == ["codec.safetensors"]
    codec_step, _, tokenizer_step, _, played_step, coarse_step, semantic_step, outputs_step, detector_step = ran
    assert {"--warm-start", "--partials"} < set(codec_step)
    assert tokenizer_step[-4:] == ["--recipe", "piano", "--teacher", "notes"]
    assert played_step[2:5] == ["audiolm_cli.training.corpora.played", "--data", str(tmp_path / "midi")]
    assert coarse_step[-2:] == ["--coarse", "6"]
    minutes = [float(step[step.index("--minutes") + 1]) for step in ran if "--minutes" in step]
    assert sum(minutes) == pytest.approx(210, abs=0.01)
    assert "semantic" in semantic_step
    assert outputs_step[-2:] == detector_step[-2:] == ["--model", str(tmp_path / "piano")]
    recipe = dataclasses.replace(RECIPES["piano"], from_codec=str(tiny_bundle)).scaled(210)
    assembled.assert_called_with(tmp_path / "runs/parts", "piano", tmp_path / "piano", recipe=recipe)
    assert assembled.call_count == 2  # the detector hears what the rest has made


def test_the_recipe_with_a_teacher_and_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(
        whole_run, "subprocess", types.SimpleNamespace(run=lambda command, check: ran.append(command[2:]))
    )
    monkeypatch.setattr(whole_run, "assemble", Mock())
    common = ("--data", tmp_path / "data", "--runs", tmp_path, "--out", tmp_path / "speech")
    with pytest.raises(SystemExit):
        run("audiolm_cli.training.run", "tiny", *common, "--teacher", "base", "--read-hours", 7)
    run(
        "audiolm_cli.training.run",
        "tiny",
        *common,
        "--teacher",
        "base",
        "--read-hours",
        7,
        "--text",
        tmp_path / "books",
    )
    names = [step[0].rpartition(".")[2] for step in ran]
    assert names[2:7] == ["synthetic", "student", "tokenize", "tokenize", "lm"]
    read, student, real, synthetic, *_ = ran[2:]
    assert [read[read.index(name) + 1] for name in ("--out", "--hours")] == [str(tmp_path / "synthetic"), "7.0"]
    assert student[-4:] == ["--teacher", "base", "--synthetic", str(tmp_path / "synthetic")]
    assert synthetic == [*real, "--synthetic", str(tmp_path / "synthetic")]
