"""Variety: other keys, tempi, pianos, rooms and microphones change what they should and nothing else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from audiolm_cli.training import RATE
from audiolm_cli.training.corpora import piano_variety
from audiolm_cli.training.corpora.piano_synth import Note
from audiolm_cli.training.corpora.piano_variety import TAPS, Variety
from tests.training.corpora.test_piano_synth import loudness, made_up

KEYS = range(21, 109)
DIRECT = np.ones(1, np.float32)  # a room without walls
NOTHING = Variety(
    drift_chance=0, touch_chance=0, equaliser=0, upright_chance=0, noise_chance=0, band_chance=0, mp3_chance=0
)


def music(seconds: float = 8.0) -> np.ndarray:
    """A note every second, each quieter than the one before."""
    sound = np.zeros(round(seconds * RATE), np.float32)
    for n in range(int(seconds)):
        sound[n * RATE : (n + 1) * RATE] = 0.8**n * made_up(48 + 5 * n, 4, 1.0)
    return sound


def hiss(seconds: float = 4.0) -> np.ndarray:
    return (0.05 * np.random.default_rng(0).standard_normal(round(seconds * RATE))).astype(np.float32)


def band(sound: np.ndarray, low: float, high: float) -> float:
    """The level between two frequencies, dB."""
    power = np.square(np.abs(np.fft.rfft(sound * np.hanning(len(sound)))))
    frequencies = np.fft.rfftfreq(len(sound), 1 / RATE)
    return float(10 * np.log10(power[(frequencies >= low) & (frequencies < high)].sum() + 1e-12))


def lag(sound: np.ndarray, late: np.ndarray) -> int:
    spectra = np.fft.rfft(sound, 2 * len(sound)).conj() * np.fft.rfft(late, 2 * len(sound))
    place = int(np.fft.irfft(spectra).argmax())
    return place if place < len(sound) else place - 2 * len(sound)


def with_(**settings: object) -> Variety:
    return dataclasses.replace(NOTHING, **settings)  # type: ignore[arg-type]


def recorded(sound: np.ndarray, how: Variety, seed: int = 0) -> np.ndarray:
    return piano_variety.recorded(sound, DIRECT, np.random.default_rng(seed), how)


def test_pieces_are_played_in_other_keys_and_tempi():
    notes = [Note(0.5, 1.0, 40, 50), Note(1.5, 3.0, 70, 60)]
    moves, tempi = set(), []
    for seed in range(200):
        first, second = piano_variety.performed(notes, np.random.default_rng(seed), Variety(), KEYS)
        assert second.key - first.key == 30
        assert (first.onset, first.velocity, second.velocity) == (0.5, 50, 60)
        tempo = 1 / (second.onset - first.onset)
        assert second.end - second.onset == pytest.approx(1.5 / tempo)
        moves.add(first.key - 40)
        tempi.append(tempo)
    assert moves == set(range(-5, 6))
    assert 0.85 <= min(tempi) < 0.87
    assert 1.13 < max(tempi) <= 1.15


def test_no_note_leaves_the_keyboard():
    notes = [Note(0, 1, 22, 50), Note(0, 1, 107, 50)]
    moves = {
        piano_variety.performed(notes, np.random.default_rng(seed), Variety(), KEYS)[0].key - 22 for seed in range(50)
    }
    assert moves == {-1, 0, 1}


def test_without_any_chance_a_recording_is_what_was_played():
    sound = music()
    assert recorded(sound, NOTHING) == pytest.approx(sound, abs=1e-5)


def test_recordings_keep_their_length_and_are_the_same_for_the_same_seed():
    sound = music()
    full = Variety(drift_chance=1, touch_chance=1, upright_chance=1, noise_chance=1, band_chance=1, mp3_chance=1)
    one, again, other = (recorded(sound, full, seed) for seed in (0, 0, 1))
    assert one.dtype == np.float32
    assert len(one) == len(sound)
    assert np.isfinite(one).all()
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("name", ["drift", "touch", "upright", "noise", "band", "mp3"])
def test_every_chance_is_a_share_of_all_pieces(name):
    sound = hiss(0.5) + 0.3 * np.sin(np.arange(RATE // 2, dtype=np.float32))
    how = with_(**{f"{name}_chance": 0.4})
    changed = sum(np.abs(recorded(sound, how, seed) - sound).max() > 1e-4 for seed in range(60))
    assert 12 <= changed <= 36


def test_pitch_drifts_slowly_and_a_little():
    """The peak of a long tone in windows of half a second."""
    time = np.arange(40 * RATE) / RATE
    drifted = drift(np.sin(2 * np.pi * 3000 * time).astype(np.float32))
    parts = drifted.reshape(-1, RATE // 2)[:-2] * np.hanning(RATE // 2)
    cents = 1200 * np.log2(np.abs(np.fft.rfft(parts, 2**17)).argmax(1) * RATE / 2**17 / 3000)
    assert 3 < cents.std() < 15
    assert np.abs(np.diff(cents)).max() < 8
    assert loudness(drifted[:-RATE]) == pytest.approx(loudness(np.sin(time)), abs=0.1)


def test_drifting_adds_next_to_no_noise():
    tone = np.sin(2 * np.pi * 1000 * np.arange(2 * RATE) / RATE).astype(np.float32)
    drifted = drift(tone)[RATE // 2 : RATE]
    drifted = drifted * np.hanning(len(drifted))
    assert band(drifted, 0, 900) < band(drifted, 900, 1100) - 60
    assert band(drifted, 1100, 8000) < band(drifted, 900, 1100) - 55


@pytest.mark.parametrize("bright", [-10.0, 4.0])
def test_touch_changes_what_lies_above_and_nothing_below(bright):
    sound = hiss()
    touched = piano_variety.touched(sound, bright, 0.0)
    assert band(touched, 3000, 7500) - band(sound, 3000, 7500) == pytest.approx(bright, abs=0.3)
    assert band(touched, 50, 700) == pytest.approx(band(sound, 50, 700), abs=0.1)


def test_loud_notes_are_brighter_than_soft_ones():
    sound = np.concatenate([0.1 * hiss(), hiss(), 0.3 * hiss()])
    touched = piano_variety.touched(sound, 0.0, 0.3)
    inner = [slice(start * RATE, (start + 3) * RATE) for start in (0, 4, 8)]
    soft, loud, middle = (band(touched[part], 3000, 7500) - band(sound[part], 3000, 7500) for part in inner)
    assert soft == pytest.approx(-0.3 * 9.5, abs=0.5)
    assert loud == pytest.approx(0.3 * 10.5, abs=0.5)
    assert middle == pytest.approx(0, abs=0.5)


def test_uprights_have_less_bass_and_are_duller():
    frequencies = np.linspace(0, RATE / 2, TAPS // 2 + 1)
    gains = np.mean([piano_variety.upright(frequencies, np.random.default_rng(seed)) for seed in range(30)], 0)
    assert np.interp(40, frequencies, gains) < np.interp(300, frequencies, gains) - 8
    assert np.interp(7000, frequencies, gains) < np.interp(1000, frequencies, gains) - 2


def test_noise_is_as_loud_as_asked():
    sound = music()
    left = recorded(sound, with_(noise_chance=1, noise=(30.0, 30.0))) - sound
    assert loudness(left) == pytest.approx(loudness(sound) - 30, abs=1)


def test_a_narrow_band_ends_where_asked():
    sound = hiss()
    for edge in (4000.0, 6000.0):
        narrow = recorded(sound, with_(band_chance=1, band=(edge, edge)))
        assert band(narrow, edge + 50, 8000) < band(sound, edge + 50, 8000) - 60
        assert band(narrow, 100, 0.9 * edge) == pytest.approx(band(sound, 100, 0.9 * edge), abs=0.2)
    assert lag(sound, narrow) == 0


@pytest.mark.parametrize("kbits", [24, 32, 48, 64])
def test_mp3_leaves_its_traces_where_they_belong(kbits):
    sound = music()
    through = piano_variety.through_mp3(sound, kbits)
    assert len(through) == len(sound)
    assert lag(sound, through) == 0
    assert loudness(through - sound) - loudness(sound) < -8
    if kbits == 24:
        bright = hiss()
        low, high = (loudness(piano_variety.through_mp3(bright, rate) - bright) for rate in (24, 64))
        assert low > high + 3


def test_settings_that_differ_have_another_identity():
    assert Variety().identity == Variety().identity
    assert len({Variety().identity, Variety(semitones=4).identity, Variety(mp3_chance=0.3).identity}) == 3


def drift(sound: np.ndarray, cents: float = 8.0) -> np.ndarray:
    return piano_variety.drifted(sound, piano_variety.drift_of(len(sound), np.random.default_rng(0), cents))


def test_a_drift_moves_the_notes_to_where_they_are_heard():
    clicks, how = np.arange(RATE, 60 * RATE, 5 * RATE), with_(drift_chance=1, drift=40.0)
    sound = np.zeros(61 * RATE, np.float32)
    sound[clicks] = 1
    notes = [Note(click / RATE, click / RATE + 1, 60, 64) for click in clicks]
    moved = piano_variety.heard(notes, len(sound), np.random.default_rng(3), how)
    heard = np.flatnonzero(recorded(sound, how, 3) > 0.3)
    found = np.array([heard[np.abs(heard - note.onset * RATE).argmin()] for note in moved])
    assert np.abs(found - [note.onset * RATE for note in moved]).max() < 40  # 2.5 ms
    assert np.abs(found - clicks).max() > 400
    assert piano_variety.heard(notes, len(sound), np.random.default_rng(3), NOTHING) == tuple(notes)
