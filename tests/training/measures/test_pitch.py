"""The melody of glides whose pitch is known."""

from __future__ import annotations

import numpy as np
import pytest

from audiolm_cli.training.measures import pitch

RATE = 16000


def sung(hertz: np.ndarray) -> np.ndarray:
    """A voice-like sound, float32 [T], of that pitch at each sample; 0 is silence."""
    phase = 2 * np.pi * np.cumsum(hertz) / RATE
    return (0.1 * sum(np.sin(k * phase) / k for k in range(1, 8)) * (hertz > 0)).astype(np.float32)


def test_the_pitch_of_a_glide_is_found_where_there_is_any() -> None:
    pytest.importorskip("librosa", reason="needs the extra 'eval'")
    hertz = np.concatenate([np.geomspace(100, 200, RATE), np.zeros(RATE // 2)])
    found = pitch.contour(sung(hertz))
    assert found.shape == (75 + 1,)
    assert found[5:45] == pytest.approx(np.log2(hertz[: 50 * 320 : 320][5:45]), abs=0.03)
    assert np.isnan(found[55:]).all()
    assert np.isnan(pitch.contour(np.zeros(6400, np.float32))).all()


def test_melody_counts_and_register_does_not() -> None:
    melody, other = np.sin(np.arange(100.0) / 10), np.cos(np.arange(100.0) / 10)
    assert pitch.correlation(melody + 7, 0.5 * melody + 8) == pytest.approx(1)
    assert pitch.correlation(melody, -melody) == pytest.approx(-1)
    assert abs(pitch.correlation(melody, other)) < 0.2


def test_only_frames_count_that_are_voiced_in_both() -> None:
    one, other = np.sin(np.arange(100.0)), np.sin(np.arange(120.0))
    one[:30], other[60:80] = np.nan, np.nan
    assert pitch.correlation(one, other) == pytest.approx(1)


def test_nothing_is_said_of_too_little_or_of_no_movement() -> None:
    melody = np.sin(np.arange(100.0))
    few = np.where(np.arange(100) < pitch.LEAST - 1, melody, np.nan)
    assert np.isnan(pitch.correlation(melody, few))
    assert np.isnan(pitch.correlation(melody, np.zeros(100)))
    assert np.isnan(pitch.correlation(melody, melody[:0]))
