"""The classifier's training: from outputs to figures, and that it learns."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from audiolm_cli import detector
from audiolm_cli.bundles import bundle as bundles
from audiolm_cli.config import DetectorConfig
from audiolm_cli.detector import SpectralDetector, make_detector
from audiolm_cli.training.corpora.data import load_corpus
from audiolm_cli.training.parts import detector as training
from audiolm_cli.training.parts import detector_data
from tests.helpers.sounds import tone

RATE = 16000
SPECTRAL = DetectorConfig("spectra", (8, 8))


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return bundles.load(str(tiny_bundle), device="cpu", dtype="float32")


def test_plans_differ_and_stay(bundle):
    plans = [detector_data.plan(bundle, number) for number in range(10)]
    assert plans == [detector_data.plan(bundle, number) for number in range(10)]
    assert {plan.way for plan in plans} == {"continue", "generate", "resynth"}
    assert vars(plans[0].sampling) == vars(bundle.config.sampling)
    assert plans[1].sampling != plans[2].sampling


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two corpora of hums for training and validation."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    lines = ["path\tsplit\tcorpus\tspeaker"]
    for n in range(12):
        time = np.arange(7 * RATE) / RATE
        hum = 0.2 * np.sin(2 * np.pi * rng.uniform(100, 900) * time) * np.sin(2 * np.pi * rng.uniform(1, 4) * time)
        soundfile.write(folder / f"{n}.wav", hum, RATE)
        lines.append(f"{n}.wav\t{'valid' if n % 3 == 0 else 'train'}\t{'ab'[n % 2]}\tspeaker{n}")
    (folder / "manifest.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_joins_are_looked_for_in_continuations(data, bundle, tmp_path, monkeypatch):
    heard = []

    def judge(_, samples):
        heard.append(samples)
        made = len(samples) > 6 * RATE
        return detector.Judgement(0.9 if made else 0.1, [(6.5, 12.0)] if made else [], np.empty(0), np.empty(0))

    monkeypatch.setattr(training, "judge", judge)
    found = training.joins(bundle, load_corpus(data, "valid", RATE, tmp_path), 2)
    assert found == {"recordings": 0, "continued": 1, "marked": 1, "s from the join": 0.5}
    assert [len(samples) for samples in heard] == [6 * RATE] * 2 + [12 * RATE] * 4
    assert np.array_equal(heard[2][: 5 * RATE], heard[4][: 5 * RATE])
    assert not np.array_equal(heard[2], heard[4])


@pytest.mark.slow
def test_training_from_outputs_to_figures(data, tiny_bundle, tmp_path, monkeypatch, capsys, steps_take):
    steps_take(0.5)
    runs = ["--data", str(data), "--runs", str(tmp_path), "--model", str(tiny_bundle), "--threads", "1"]
    monkeypatch.setattr(detector_data, "BATCH", 2)
    monkeypatch.setattr(sys, "argv", ["outputs", *runs, "--batches", "5", "--valid-batches", "2"])
    detector_data.main()
    made = sorted(file.name for file in (tmp_path / "outputs").iterdir())
    assert len(made) == 7
    detector_data.main()  # nothing is made again
    assert len(capsys.readouterr().err.splitlines()) == 7
    corpus = load_corpus(data, "train", RATE, tmp_path / "audio")
    found = detector_data.load_outputs(tmp_path, "train", bundles.load(str(tiny_bundle), device="cpu"), corpus)
    assert [sound.shape for _, sound in found] == [(6 * RATE,)] * 10
    assert {source for source, _ in found} == {"a", "b", ""}
    monkeypatch.setattr(sys, "argv", ["detector", *runs, "--minutes", "0.1", "--device", "cpu", "--report"])
    training.main()
    out = capsys.readouterr().out
    report = json.loads(out[out.index("{\n") :])
    assert report.keys() == {"traces", "never heard a", "never heard b", "raw"}
    assert {"a", "a, as it is"} < report["never heard a"].keys()
    assert {"made", "b", "right"} < report["raw"].keys()
    assert (tmp_path / "parts" / "detector.safetensors").stat().st_size < 4e6


@pytest.mark.slow
@pytest.mark.parametrize("raw", [False, True])
def test_it_learns_what_is_made(bundle, tmp_path, raw, steps_take):
    steps_take(60 / 300)
    rng = np.random.default_rng(0)
    configs = (replace(bundle.config, detector=c) for c in (SPECTRAL, DetectorConfig(channels=(8, 8))))
    spectral, traced = map(make_detector, configs)
    assert isinstance(spectral, SpectralDetector)

    def items(count):
        """Recordings are noise, outputs a chord in a little of it."""
        found = []
        for n in range(count):
            noise = 0.1 * rng.standard_normal(4 * RATE)
            sound = (tone(4.0) + 0.01 * noise if n % 2 else noise).astype(np.float32)
            heard = spectral.spectra(sound) if raw else traced.features(bundle, sound)
            found.append(training.Example(heard, n % 2 == 1, "a"))
        return found

    args = argparse.Namespace(runs=tmp_path, minutes=1, resume=False, device="cpu", threads=1, seed=0, warm_start=False)
    trained = training.train(args, "detector", spectral if raw else traced, items(40), items(4))
    assert training.figures(trained, items(20))["right"]["windows"] > 0.95


def test_figures_are_told_apart_by_how_recordings_were_handled():
    def called(level):
        return torch.full((200, 1), float(level))

    items = [
        training.Example(called(1), True, "a"),
        training.Example(called(-1), True, "a"),
        training.Example(called(-1), False, "a"),
        training.Example(called(1), False, "a", "changed"),
    ]
    found = training.figures(lambda windows: windows.mean((1, 2)), items)  # type: ignore[arg-type]
    assert found["made"] == {"windows": 0.5, "stretches": 0.5, "of": 2}
    assert (found["a"]["stretches"], found["a, as it is"]["stretches"], found["a, changed"]["stretches"]) == (0.5, 0, 1)
    assert found["right"] == {"windows": 0.5, "stretches": 0.5}


def test_altered_sound_keeps_its_length():
    for seed in range(12):
        changed = training.altered(tone(2.0), RATE, np.random.default_rng(seed))
        assert len(changed) == 2 * RATE
        assert np.isfinite(changed).all()


def test_items_are_made_once(tmp_path):
    made = [training.Example(torch.ones(10, 4), True, ""), training.Example(torch.zeros(7, 4), False, "a", "changed")]
    first = training.cached(tmp_path / "items.safetensors", lambda: made)
    second = training.cached(tmp_path / "items.safetensors", lambda: pytest.fail("made again"))
    for found in (first, second):
        assert [item[1:] for item in found] == [(True, "", ""), (False, "a", "changed")]
        assert torch.equal(found[1].features, made[1].features)
