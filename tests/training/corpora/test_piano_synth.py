"""The pianos: what they play is found again in their sound, with made-up recordings and, where they are, real ones."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from audiolm_cli.errors import InputError, UsageError
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora import piano_synth
from audiolm_cli.training.corpora.piano_synth import Note, Piano
from tests.helpers import ROOT

REAL = ROOT.parent / "shared" / "data" / "piano" / "headroom"
STEPS = np.arange(21, 109, 0.25)  # keys and what lies between them


def hertz(key: Any) -> Any:
    return 440 * 2 ** ((key - 69) / 12)


def made_up(key: int, layer: int, seconds: float = 2.0, late: float = 0.01, cents: float = 0.0) -> np.ndarray:
    """A decaying tone with the overtones that RATE has room for, `late` s after the start."""
    time = np.arange(round((seconds - late) * RATE)) / RATE
    pitches = hertz(key + cents / 100) * np.arange(1, 9)
    tone = sum(0.6**i * np.sin(2 * np.pi * pitch * time) for i, pitch in enumerate(pitches) if pitch < RATE / 2)
    decay = np.exp(-time * np.interp(key, (21, 108), (1, 6)))
    loud = 0.2 * 10 ** ((layer - 5) * 5 / 20)
    return np.pad(loud * tone * decay, (round(late * RATE), 0)).astype(np.float32)


def recordings(keys: Sequence[int] = range(21, 109, 3)) -> dict[tuple[int, int], np.ndarray]:
    return {(layer, key): made_up(key, layer) for layer in range(1, 6) for key in keys}


@pytest.fixture(scope="module", params=["made-up", pytest.param("real", marks=pytest.mark.slow)])
def piano(request: pytest.FixtureRequest) -> Piano:
    if request.param == "made-up":
        return Piano(recordings())
    if not REAL.is_dir():
        pytest.skip("needs the recorded piano")
    return Piano.load(REAL)


def pitch(sound: np.ndarray) -> float:
    """The key, to a quarter of one, whose overtones stand out most against what lies between them."""
    size, part = 2**17, sound[RATE // 50 : RATE // 2]
    spectrum = np.sqrt(np.abs(np.fft.rfft(part * np.hanning(len(part)), size)))

    def at(frequencies: np.ndarray) -> np.ndarray:
        near = np.multiply.outer(frequencies, np.arange(0.994, 1.007, 0.002)) * size / RATE
        return spectrum[np.minimum(np.round(near).astype(int), len(spectrum) - 1)].max(-1) * (frequencies < RATE / 2)

    weights, overtones = 0.8 ** np.arange(8), np.arange(1, 9)
    scores = [(weights * (at(f * overtones) - at(f * (overtones - 0.5)))).sum() for f in hertz(STEPS)]
    return float(STEPS[np.argmax(scores)])


def attacks(sound: np.ndarray) -> np.ndarray:
    """The times, s, at which it gets twice as loud as it was in 40 ms, each the first of its 100 ms."""
    step = RATE // 400
    peaks = np.abs(sound[: len(sound) // step * step]).reshape(-1, step).max(1)
    before = np.lib.stride_tricks.sliding_window_view(np.pad(peaks, (16, 0)), 16)[:-1].max(1)
    rises = np.flatnonzero(peaks > np.maximum(2 * before, 0.02 * peaks.max()))
    first = np.diff(rises, prepend=-1000) > 40
    return rises[first] * step / RATE


def loudness(sound: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(sound, dtype=float)) + 1e-12))


def melody() -> list[Note]:
    """Keys from all over the piano, so far apart that one is over when the next comes."""
    keys = np.random.default_rng(0).permutation(np.arange(30, 99, 4))
    return [Note(0.2 + 1.1 * n + 0.013 * (n % 7), 0.9 + 1.1 * n, int(key), 50 + n) for n, key in enumerate(keys)]


def check_melody(sound: np.ndarray, notes: Sequence[Note]) -> None:
    found = attacks(sound)
    assert len(found) == len(notes)
    assert np.abs(found - [note.onset for note in notes]).max() < 0.02
    heard = [pitch(sound[round(note.onset * RATE) :]) for note in notes]
    assert np.abs(np.array(heard) - [note.key for note in notes]).max() < 0.5


def test_notes_are_found_again(piano):
    notes = melody()
    sound = piano.play(notes, round((notes[-1].end + 0.5) * RATE))
    assert sound.dtype == np.float32
    check_melody(sound, notes)


def test_every_key_is_in_tune(piano):
    size = 2**16
    for key in range(21, 109):
        sound = piano.play([Note(0.0, 1.5, key, 77)], RATE)
        overtone = 1 if key > 40 else 4  # of the lowest keys the first is hardly there
        spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), size))
        cents = 1200 * np.log2(np.maximum(np.fft.rfftfreq(size, 1 / RATE), 1) / overtone / hertz(key))
        near = np.abs(cents) < 120
        assert abs(cents[near][spectrum[near].argmax()]) < piano_synth.STRETCH + 5


def test_loudness_grows_steadily_with_velocity(piano):
    for key in (21, 40, 61, 75, 88, 108):
        levels = [loudness(piano.play([Note(0.0, 1.0, key, velocity)], RATE // 2)) for velocity in range(1, 128)]
        assert np.diff(levels).min() > 0.05
        assert np.diff(levels).max() < 0.6
        assert 15 < levels[-1] - levels[0] < 40


def test_dampers_silence_low_keys_more_slowly(piano):
    falls = []
    for key in (30, 60, 86):
        held, let_go = (piano.play([Note(0.0, end, key, 80)], 2 * RATE) for end in (2.0, 0.5))
        assert (held[: RATE // 2] == let_go[: RATE // 2]).all()
        part = slice(RATE * 6 // 10, RATE * 7 // 10)
        falls.append(loudness(held[part]) - loudness(let_go[part]))
        assert not let_go[RATE * 7 // 4 :].any()
    assert 5 < falls[0] < falls[1] < falls[2]


def test_keys_are_heard_when_they_are_struck_however_late_the_recording_begins():
    some = recordings()
    for layer in range(1, 6):
        key_noise = 0.02 * np.abs(some[layer, 60]).max() * np.random.default_rng(0).standard_normal(800)
        some[layer, 60] = np.concatenate([key_noise.astype(np.float32), some[layer, 60][160:]])
    sound = Piano(some).play([Note(0.1, 0.8, 60, 80)], RATE)
    assert attacks(sound) == pytest.approx([0.1], abs=0.01)


def test_keys_that_are_far_out_of_tune_are_retuned():
    some = recordings()
    some |= {(layer, 96): made_up(96, layer, cents=80.0) for layer in range(1, 6)}
    piano = Piano(some)
    assert [key for key, sharp in zip(piano.keys, piano.sharp, strict=True) if sharp] == [96]
    assert max(piano.sharp) == pytest.approx(60, abs=2)
    assert pitch(piano.play([Note(0.0, 1.0, 97, 80)], RATE)) == pytest.approx(97.2, abs=0.15)


def test_a_key_that_was_recorded_louder_is_brought_nearer_to_its_neighbours():
    some = recordings()
    some |= {(layer, 60): 3 * some[layer, 60] for layer in range(1, 6)}
    even, uneven = (Piano(each).even for each in (recordings(), some))
    column = list(range(21, 109, 3)).index(60)
    assert (uneven - even)[:, column].min() > 0
    assert (uneven - even)[:, column].max() < 4


def test_recordings_that_are_missing_are_named(tmp_path):
    some = recordings((57, 60, 63))
    del some[2, 60]
    with pytest.raises(InputError, match=r"missing: level2_060$"):
        Piano(some)
    with pytest.raises(InputError, match="5 layers"):
        Piano({(layer, key): sound for (layer, key), sound in recordings((60,)).items() if layer < 5})
    with pytest.raises(InputError, match="no recordings of piano keys there"):
        Piano.load(tmp_path)


def test_rooms_answer_softly_and_differ():
    rooms = [piano_synth.room_response(np.random.default_rng(seed)) for seed in range(5)]
    for response in rooms:
        assert response[0] == 1
        assert 0.2 <= len(response) / RATE <= 0.7
        assert -30 < 10 * np.log10(np.sum(response[1:] ** 2)) < -3
        tail = response[RATE // 20 :]
        third = len(tail) // 3
        assert loudness(tail[:third]) - loudness(tail[-third:]) > 15
    assert len({len(response) for response in rooms}) > 1
    sound = np.random.default_rng(0).standard_normal(140_000).astype(np.float32)
    heard = piano_synth.convolved(sound, rooms[0][:500])
    assert heard.dtype == np.float32
    assert heard == pytest.approx(np.convolve(sound, rooms[0][:500])[: len(sound)], abs=1e-3)


def test_fluidsynth_plays_the_same_notes():
    pytest.importorskip("mido", reason="needs the extra 'train'")
    try:
        font = piano_synth.sound_font()
    except UsageError as error:
        pytest.skip(str(error))
    notes = melody()
    samples = round((notes[-1].end + 0.5) * RATE)
    sound = piano_synth.fluidsynth(notes, samples, font)
    assert sound.dtype == np.float32
    assert len(sound) == samples
    check_melody(sound / np.abs(sound).max(), notes)
    assert (piano_synth.fluidsynth(notes, samples, font) == sound).all()
    soft, loud = (piano_synth.fluidsynth([Note(0.1, 0.9, 60, velocity)], RATE, font) for velocity in (30, 90))
    assert loudness(loud) - loudness(soft) > 6


def test_what_fluidsynth_says_when_it_fails_is_passed_on(monkeypatch, tmp_path):
    pytest.importorskip("mido", reason="needs the extra 'train'")
    (tmp_path / "fluidsynth").write_text("#!/bin/sh\necho no such font >&2\n")
    (tmp_path / "fluidsynth").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"^fluidsynth failed: no such font$"):
        piano_synth.fluidsynth(melody(), RATE, "no-such-font")


def test_without_fluidsynth_or_its_sound_font_the_error_is_one_line(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(piano_synth, "SOUND_FONTS", ("/nowhere/no.sf2",))
    with pytest.raises(UsageError, match="no sound font"):
        piano_synth.sound_font()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UsageError, match="fluidsynth is not installed"):
        piano_synth.sound_font()
