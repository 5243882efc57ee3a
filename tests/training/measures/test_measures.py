"""Measures of sound on signals whose answer is known."""

import importlib.util

import numpy as np
import pytest

from audiolm_cli.training import RATE
from audiolm_cli.training.measures import measures
from audiolm_cli.training.measures.measures import Figure, SpokenClip, bootstrap, clips_per_speaker, figure


def tone(seconds: float = 2.0, hertz: float = 200.0, level: float = 0.1) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


def noise(seconds: float = 2.0, level: float = 0.1) -> np.ndarray:
    return (level * np.random.default_rng(0).standard_normal(int(seconds * RATE))).astype(np.float32)


def chatter(seconds: float = 3.0) -> np.ndarray:
    """Noise in syllable-like bursts: enough for the measures that compare two signals."""
    envelope = np.clip(np.sin(2 * np.pi * 3 * np.arange(int(seconds * RATE)) / RATE), 0, None)
    return (noise(seconds, 0.3) * envelope).astype(np.float32)


def test_figure_averages_within_speakers_first():
    assert figure([("a", 1.0), ("a", 1.0), ("a", 1.0), ("b", 0.0)]).mean == 0.5


def test_figure_leaves_nan_out():
    assert figure([("a", 1.0), ("b", float("nan"))]) == Figure(1.0, 1.0, 1.0)
    assert np.isnan(figure([("a", float("nan"))]).mean)


def test_bootstrap_is_reproducible_and_holds_the_mean():
    values = list(np.random.default_rng(0).normal(size=50))
    low, high = bootstrap(values, lambda chosen: float(np.mean(chosen)))
    assert low < np.mean(values) < high
    assert (low, high) == bootstrap(values, lambda chosen: float(np.mean(chosen)))


def test_clips_per_speaker_keeps_order():
    clips = [SpokenClip(name, np.full(1, i)) for i, name in enumerate("aabab")]
    assert [int(clip.samples[0]) for clip in clips_per_speaker(clips, 2)] == [0, 1, 2, 4]


@pytest.mark.slow
def test_log_mel_of_a_full_scale_sine_is_near_zero_decibel():
    pytest.importorskip("librosa", reason="needs the extra 'eval'")
    assert abs(measures.log_mel(tone(level=1.0, hertz=1000.0))[:, 20:-20].max()) < 3
    assert np.allclose(measures.log_mel(np.zeros(RATE, np.float32)), -80)


def test_mel_distance_is_zero_for_the_same_and_grows_with_noise():
    pytest.importorskip("librosa", reason="needs the extra 'eval'")
    clean = chatter()
    assert measures.mel_distance(clean, clean) == 0
    assert (
        0 < measures.mel_distance(clean, clean + noise(3, 0.001)) < measures.mel_distance(clean, clean + noise(3, 0.1))
    )


def test_pesq_and_stoi_reach_their_tops_and_fall_with_noise():
    pytest.importorskip("pesq", reason="needs the extra 'eval'")
    pytest.importorskip("pystoi", reason="needs the extra 'eval'")
    clean = chatter()
    assert measures.pesq(clean, clean) > 4.5
    assert measures.stoi(clean, clean) > 0.99
    assert measures.pesq(clean, clean + noise(3)) < 4
    assert measures.stoi(clean, clean + noise(3)) < 0.99


def test_pesq_of_silence_is_nan():
    pytest.importorskip("pesq", reason="needs the extra 'eval'")
    assert np.isnan(measures.pesq(np.zeros(RATE, np.float32), tone(1)))


def test_neither_silence_nor_noise_nor_a_buzz_is_speech():
    if importlib.util.find_spec("silero_vad") is None:
        pytest.skip("needs the extra 'eval'")
    for samples in (np.zeros(2 * RATE, np.float32), noise(), np.sign(tone(hertz=120.0)) * 0.1):
        assert measures.speech_fraction(samples) < 0.05
    assert measures.speech_fraction(np.zeros(10, np.float32)) == 0


def test_voice_is_a_unit_vector_and_zeros_for_silence():
    pytest.importorskip("resemblyzer", reason="needs the extra 'eval'")
    assert not measures.voice(np.zeros(3 * RATE, np.float32)).any()
    embedding = measures.voice(chatter())
    hum = tone(3.0, hertz=40.0)
    assert embedding @ measures.voice(chatter() + hum) > 0.999
    assert embedding.shape == (256,)
    assert np.isclose(np.linalg.norm(embedding), 1, atol=1e-4) or not embedding.any()


def test_codec_figures_cut_to_the_shorter():
    for package in ("pesq", "pystoi", "speechmos", "librosa"):
        pytest.importorskip(package, reason="needs the extra 'eval'")
    figures = measures.codec_figures(lambda samples: samples[:-100], [SpokenClip("a", chatter())])
    assert set(figures) == {"pesq", "stoi", "dnsmos", "mel_distance"}
    assert figures["mel_distance"].mean == 0


def test_opus_keeps_the_length_and_costs_quality():
    if not measures.opus_rows():
        pytest.skip("needs opus-tools")
    clean = chatter()
    assert len(measures.opus(6)(clean)) == len(clean)
