"""The classifier: what it hears, how windows become segments, and that its training learns."""

import argparse
import json
import sys

import numpy as np
import pytest
import soundfile
import torch

from audiolm_cli import bundle as bundles
from audiolm_cli import detector
from audiolm_cli.config import DetectorConfig, TokenSpec
from audiolm_cli.detector import Detector
from audiolm_cli.training import detector as training
from audiolm_cli.training import outputs
from audiolm_cli.training.data import load_corpus
from tests.conftest import tone

RATE = 16000


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return bundles.load(str(tiny_bundle), device="cpu", dtype="float32")


def test_a_window_has_one_logit():
    model = Detector(DetectorConfig(), TokenSpec())
    mel = model.mel(torch.randn(3, 2 * RATE))
    assert mel.shape == (3, 100, 64)
    assert model(mel).shape == (3,)
    assert sum(p.numel() for p in model.parameters()) * 2 < 4e6  # bytes in bfloat16


@pytest.mark.parametrize("seconds", [0.001, 0.019, 0.05, 1.0, 2.0, 7.3])
def test_any_length_is_judged(bundle, seconds):
    found = detector.judge(bundle.detector, bundle.codec, tone(seconds))
    assert 0 <= found.probability <= 1
    assert len(found.starts) == len(found.windows) == max(0, int((seconds - 2) / 0.5 + 1e-9)) + 1
    for start, end in found.segments:
        assert 0 <= start < end <= seconds


def test_level_does_not_count(bundle):
    samples = tone(4.0)
    loud, quiet = (detector.judge(bundle.detector, bundle.codec, samples * gain) for gain in (1.0, 0.01))
    assert quiet.windows == pytest.approx(loud.windows, abs=0.02)


def test_windows_without_sound_tell_nothing(bundle):
    found = detector.judge(bundle.detector, bundle.codec, np.concatenate([tone(4.0), np.zeros(4 * RATE, np.float32)]))
    assert np.isnan(found.windows[-1])
    assert not np.isnan(found.windows[0])


def test_silence_is_nobodys(bundle):
    found = detector.judge(bundle.detector, bundle.codec, np.zeros(3 * RATE, np.float32))
    assert found.probability < 0.1
    assert np.isnan(found.windows).all()
    assert found.segments == []


def test_segments_begin_where_a_window_is_half_in_them():
    starts = np.arange(9) * 0.5
    logits = np.array([-9, -9, 2, 2, -1, 2, -9, 4, 2.0])  # a doubtful window does not end one
    assert detector._segments(logits, starts, 6.0) == [(2.0, 3.5), (4.5, 6.0)]
    assert detector._segments(np.ones(9), starts, 6.0) == [(0.0, 6.0)]
    assert detector._segments(np.full(9, -1.0), starts, 6.0) == []
    assert detector._segments(np.array([-1, 2, -1.0]), starts[:3], 3.0) == []  # hardly more likely than not


def test_one_lone_window_does_not_make_a_recording_suspicious(bundle, monkeypatch):
    logits = iter([5.0] + [-5.0] * 20)
    monkeypatch.setattr(bundle.detector, "forward", lambda mel: torch.tensor([next(logits) for _ in mel]))
    assert detector.judge(bundle.detector, bundle.codec, tone(8.0)).probability < 0.5


def test_plans_differ_and_stay(bundle):
    plans = [outputs.plan(bundle, number) for number in range(10)]
    assert plans == [outputs.plan(bundle, number) for number in range(10)]
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


@pytest.mark.slow
def test_training_from_outputs_to_figures(data, tiny_bundle, tmp_path, monkeypatch, capsys):
    runs = ["--data", str(data), "--runs", str(tmp_path), "--model", str(tiny_bundle), "--threads", "1"]
    monkeypatch.setattr(outputs, "BATCH", 2)
    monkeypatch.setattr(sys, "argv", ["outputs", *runs, "--batches", "5", "--valid-batches", "2"])
    outputs.main()
    made = sorted(file.name for file in (tmp_path / "outputs").iterdir())
    assert len(made) == 7
    outputs.main()  # nothing is made again
    assert len(capsys.readouterr().err.splitlines()) == 7
    corpus = load_corpus(data, "train", RATE, tmp_path / "audio")
    found = outputs.load_outputs(tmp_path, "train", bundles.load(str(tiny_bundle), device="cpu"), corpus)
    assert [sound.shape for _, sound in found] == [(6 * RATE,)] * 10
    assert {source for source, _ in found} == {"a", "b", ""}
    monkeypatch.setattr(sys, "argv", ["detector", *runs, "--minutes", "0.1", "--device", "cpu", "--report"])
    training.main()
    out = capsys.readouterr().out
    report = json.loads(out[out.index("{\n") :])
    assert report.keys() == {"through the codec", "never heard a", "never heard b", "raw"}
    assert (tmp_path / "parts" / "detector.safetensors").stat().st_size < 4e6


@pytest.mark.slow
def test_it_learns_what_is_made(tmp_path):
    rng = np.random.default_rng(0)
    model = Detector(DetectorConfig(16, (8, 8)), TokenSpec(), dropout=0.1)

    def items(count):
        """Recordings are dark noise, outputs bright."""
        found = []
        for n in range(count):
            noise = rng.standard_normal(4 * RATE)
            sound = np.convolve(noise, [1, -0.5] if n % 2 else [1, 0.5], "same").astype(np.float32)
            found.append(training.Item(model.mel(torch.from_numpy(sound)[None])[0], n % 2 == 1, "a"))
        return found

    args = argparse.Namespace(
        runs=tmp_path, minutes=0.15, resume=False, device="cpu", threads=1, seed=0, warm_start=False
    )
    trained = training.train(args, "detector", model, items(40), items(4))
    assert training.figures(trained, items(20))["right"]["windows"] > 0.95


def test_altered_sound_keeps_its_length():
    for seed in range(12):
        changed = training.altered(tone(2.0), RATE, np.random.default_rng(seed))
        assert len(changed) == 2 * RATE
        assert np.isfinite(changed).all()


def test_items_are_made_once(tmp_path):
    made = [training.Item(torch.ones(10, 4), True, ""), training.Item(torch.zeros(7, 4), False, "a")]
    first = training.cached(tmp_path / "items.safetensors", lambda: made)
    second = training.cached(tmp_path / "items.safetensors", lambda: pytest.fail("made again"))
    for found in (first, second):
        assert [(item.made, item.corpus) for item in found] == [(True, ""), (False, "a")]
        assert torch.equal(found[1].mel, made[1].mel)
