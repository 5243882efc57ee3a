"""Noise and patterns between loud stretches, whose correlation and level are known."""

from __future__ import annotations

import numpy as np
import pytest

from audiolm_cli.training.measures.pauses import LAG, STRETCH, between_words

RANDOM = np.random.default_rng(0)


def noise(stretches: int, level: float) -> np.ndarray:
    return level * RANDOM.standard_normal(stretches * STRETCH)


def with_words(pause: np.ndarray) -> np.ndarray:
    """Twice as long words, of a tone that repeats itself, before and after a pause."""
    word = 0.3 * np.sin(2 * np.pi * np.arange(2 * len(pause)) / LAG * 4)
    return np.concatenate([word, pause, word]).astype(np.float32)


def test_noise_does_not_resemble_itself() -> None:
    found = between_words(with_words(noise(20, 0.001)))
    assert abs(found.correlation) < 0.03
    assert abs(found.of_noise) < 0.03
    assert found.level == pytest.approx(-60, abs=0.3)


def test_a_repeated_frame_does() -> None:
    found = between_words(with_words(np.tile(noise(1, 0.001)[:LAG], 20 * STRETCH // LAG)))
    assert found.correlation == pytest.approx(1)
    assert found.of_noise == pytest.approx(1)


def test_hum_is_told_from_repeated_noise() -> None:
    hum = 0.005 * np.sin(2 * np.pi * np.arange(20 * STRETCH) / LAG)  # 50 Hz
    found = between_words(with_words(hum + noise(20, 0.001)))
    assert found.correlation > 0.8
    assert found.of_noise < 0.15


def test_a_fifth_of_the_stretches_counts() -> None:
    levels = np.repeat([1e-3, 1e-2, 1e-2, 1e-1, 1e-1], 10)
    sound = np.concatenate([noise(1, level) for level in RANDOM.permutation(levels)])
    assert between_words(sound.astype(np.float32)).level == pytest.approx(-60, abs=0.5)


def test_digital_silence_has_a_level_alone() -> None:
    correlation, of_noise, level = between_words(np.zeros(16000, np.float32))
    assert np.isnan([correlation, of_noise]).all()
    assert level == pytest.approx(-100)
    assert np.isnan(between_words(np.zeros(STRETCH - 1, np.float32))).all()
