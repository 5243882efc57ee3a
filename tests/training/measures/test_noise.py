"""Noise behind notes: as much is found as was added, whatever the notes are, and none in clean ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from audiolm_cli.training import RATE
from audiolm_cli.training.measures import noise

pytest.importorskip("scipy", reason="needs the extra 'eval'")

NOTES = [(60,), (36,), (45,), (84,), (60, 64, 67), (48, 52, 55, 60, 64), (43, 50, 59, 67, 71, 74)]
DECAY = 2.0  # 1/s


def played(keys: Sequence[int], seconds: float = 2.0, onset: float = 0.0) -> np.ndarray:
    """Keys struck together, whose stiff strings' higher partials are sharp and decay faster."""
    random, time = np.random.default_rng(len(keys)), np.arange(round(seconds * RATE)) / RATE - onset
    sound = np.zeros(len(time))
    for key in keys:
        for k in range(1, 30):
            pitch = k * 440 * 2 ** ((key - 69) / 12) * np.sqrt(1 + 3e-4 * k * k)
            if pitch < 7800:
                phase = random.uniform(0, 2 * np.pi)
                sound += 0.2 * 0.7**k * np.sin(2 * np.pi * pitch * time + phase) * np.exp(-time * DECAY * (1 + k / 10))
    return np.where(time >= 0, sound, 0)


def hiss(like: np.ndarray, below: float, dull: int = 1) -> np.ndarray:
    """Noise that decays with a sound, `below` dB below it in every window; a larger `dull` darkens it."""
    white = np.convolve(np.random.default_rng(1).standard_normal(len(like)), np.ones(dull), "same")
    size, share = np.ones(noise.WINDOW), 10 ** (-below / 20)
    local = np.sqrt(np.convolve(like**2, size, "same") / np.convolve(white**2, size, "same"))
    return white * local * share


@pytest.mark.parametrize("keys", NOTES)
@pytest.mark.parametrize("below", [10, 25, 40])
@pytest.mark.parametrize("dull", [1, 4])
def test_as_much_noise_is_found_as_was_added(keys, below, dull):
    clean = played(keys)
    found = noise.behind_notes((clean + hiss(clean, below, dull)).astype(np.float32), [0.0])
    assert found == pytest.approx(-below, abs=1)


@pytest.mark.parametrize("keys", NOTES)
def test_clean_notes_have_hardly_any(keys):
    assert noise.behind_notes(played(keys).astype(np.float32), [0.0]) < -60


def test_only_decays_are_measured():
    """A second attack, with a bang, is left out when its onset is known; a swell is no decay."""
    sound = played((60,)) + played((60,), onset=1.0)
    sound[RATE : RATE + 400] += 0.1 * np.random.default_rng(0).standard_normal(400)
    heard = sound.astype(np.float32)
    assert noise.behind_notes(heard, [0.0, 1.0]) < -60
    assert len(noise.decays(heard, [0.0, 1.0])) < len(noise.decays(heard, [0.0]))
    assert noise.decays(played((60,))[::-1].astype(np.float32), []) == []
    assert np.isnan(noise.behind_notes(heard, np.arange(0, 2, 0.1)))


def test_silence_and_what_is_too_short_say_nothing():
    nothings = [np.zeros(length, np.float32) for length in (RATE, 100, 0)]
    assert all(np.isnan(noise.behind_notes(nothing, [])) for nothing in nothings)
    pytest.importorskip("librosa", reason="needs the extra 'eval'")
    assert all(np.isnan(noise.flatness(nothing)) for nothing in nothings)


def test_a_silent_end_is_not_measured():
    """What rounding leaves of it would be nothing but noise."""
    ended = played((60,), 2.0)
    ended[RATE:] = np.random.default_rng(0).standard_normal(RATE) * 1e-5
    assert noise.behind_notes(ended.astype(np.float32), [0.0]) < -60
    pytest.importorskip("librosa", reason="needs the extra 'eval'")
    assert noise.flatness(ended.astype(np.float32)) == pytest.approx(
        noise.flatness(ended[:RATE].astype(np.float32)), rel=0.3
    )


def test_white_noise_is_flat_and_a_note_is_not():
    pytest.importorskip("librosa", reason="needs the extra 'eval'")
    white = np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
    assert noise.flatness(white) == pytest.approx(np.exp(-np.euler_gamma), abs=0.02)  # of exponential distributions
    note = played((60,))
    flat = [noise.flatness((note + hiss(note, below)).astype(np.float32)) for below in (60, 40, 20)]
    assert flat[0] < 1e-4
    assert flat == sorted(flat)
