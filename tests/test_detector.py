"""The classifier: what it hears, and how windows become segments."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from audiolm_cli import detector
from audiolm_cli.bundles import bundle as bundles
from audiolm_cli.config import DetectorConfig
from audiolm_cli.detector import make_detector
from audiolm_cli.language_models.likelihood import likelihood_features
from tests.helpers.sounds import tone

RATE = 16000
SPECTRAL = DetectorConfig("spectra", (8, 8))


@pytest.fixture(scope="module")
def bundle(tiny_bundle):
    return bundles.load(str(tiny_bundle), device="cpu", dtype="float32")


@pytest.mark.parametrize(("config", "frames", "size"), [(DetectorConfig(), 102, 4 * 13), (SPECTRAL, 101, 64)])
def test_a_window_has_one_logit(bundle, config, frames, size):
    model = make_detector(replace(bundle.config, detector=config))
    found = model.features(bundle, tone(2.01))
    assert found.shape == (frames, size)  # traces: of whole semantic tokens
    assert model(torch.stack([found, found])).shape == (2,)
    assert sum(p.numel() for p in model.parameters()) * 2 < 4e6  # bytes in bfloat16


def test_pieces_are_heard_each_for_itself(bundle):
    sound = np.concatenate([tone(5.0), 0.1 * tone(9.0)])
    whole, second = bundle.detector.features(bundle, sound), bundle.tokenize(sound)
    piece = second[0][150:300], second[1][:, 300:600]
    assert torch.equal(whole[300:600], likelihood_features(bundle.stages, *piece, 150))
    assert len(whole) == 700


@pytest.mark.parametrize(
    "sound",
    [
        tone(0.001),
        tone(0.04),
        tone(0.95),
        np.zeros(3 * RATE, np.float32),
        np.eye(1, 5 * RATE, RATE, dtype=np.float32)[0],
        np.concatenate([np.zeros(2 * RATE), tone(0.5), np.zeros(2 * RATE)]).astype(np.float32),
        np.full(3 * RATE, 0.1, np.float32),
    ],
    ids=["1 ms", "40 ms", "950 ms", "silence", "impulse", "500 ms in silence", "constant"],
)
def test_what_is_too_short_to_tell_is_nobodys(bundle, sound):
    found = detector.judge(bundle, sound)
    assert found.probability is None
    assert found.segments == []


@pytest.mark.parametrize("seconds", [1.0, 1.5, 2.0, 7.3])
def test_any_other_length_is_judged(bundle, seconds):
    found = detector.judge(bundle, tone(seconds))
    assert found.probability is not None
    assert 0 <= found.probability <= 1
    assert len(found.starts) == len(found.windows) == max(0, int((seconds - 2) / 0.5 + 1e-9)) + 1
    for start, end in found.segments:
        assert 0 <= start < end <= seconds


def test_level_does_not_count_in_spectra(bundle):
    model, samples = make_detector(replace(bundle.config, detector=SPECTRAL)), tone(4.0)
    loud, quiet = (model.eval()(model.features(bundle, samples * gain)[None]) for gain in (1.0, 0.01))
    assert quiet.sigmoid().item() == pytest.approx(loud.sigmoid().item(), abs=0.02)


def test_windows_without_sound_tell_nothing(bundle):
    found = detector.judge(bundle, np.concatenate([tone(4.0), np.zeros(4 * RATE, np.float32)]))
    assert np.isnan(found.windows[-1])
    assert not np.isnan(found.windows[0])


def test_segments_begin_where_a_window_is_half_in_them():
    starts = np.arange(9) * 0.5
    logits = np.array([-9, -9, 2, 2, -1, 2, -9, 4, 2.0])  # a doubtful window does not end one
    assert detector._segments(logits, starts, 6.0) == [(2.0, 3.5), (4.5, 6.0)]
    assert detector._segments(np.ones(9), starts, 6.0) == [(0.0, 6.0)]
    assert detector._segments(np.full(9, -1.0), starts, 6.0) == []
    assert detector._segments(np.array([-1, 2, -1.0]), starts[:3], 3.0) == []  # hardly more likely than not
    assert detector._segments(np.array([-9, -1, 5, 3, -1, -9.0]), starts[:6], 5.0) == [(1.5, 3.0)]  # the half ones too
    assert detector._segments(np.array([-9, np.nan, 5, 3, np.nan, -9.0]), starts[:6], 5.0) == [(2.0, 2.5)]


def test_one_lone_window_does_not_make_a_recording_suspicious(bundle, monkeypatch):
    logits = iter([5.0] + [-5.0] * 20)
    monkeypatch.setattr(bundle.detector, "forward", lambda mel: torch.tensor([next(logits) for _ in mel]))
    assert (detector.judge(bundle, tone(8.0)).probability or 1) < 0.5
