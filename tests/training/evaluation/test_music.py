"""What is heard in piano music, and what is said of continuations of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from audiolm_cli.errors import UsageError
from audiolm_cli.training import RATE
from audiolm_cli.training.corpora.data import Clip, Corpus
from audiolm_cli.training.evaluation import music
from audiolm_cli.training.evaluation.music import NEW, PROMPT, REACH, Transcription
from audiolm_cli.training.measures.memorised import TrainingIndex
from tests.training.corpora.test_piano_synth import attacks

NOTHING = TrainingIndex([])
LIVELY = np.random.default_rng(0).integers(1000, size=150)  # tokens


def heard(
    *notes: tuple[float, int], level: float = -20.0, flatness: float = 0.01, seconds: float = 6.0
) -> Transcription:
    onsets, pitches = (np.array(column) for column in zip(*notes, strict=True)) if notes else (np.zeros(0),) * 2
    chroma = np.bincount(pitches.astype(int) % 12, minlength=12)
    return Transcription(onsets, pitches, chroma, level, -30.0, flatness, seconds)


def beaten(*waits: float, pitch: int = 60) -> Transcription:
    """One note again and again, after these waits."""
    return heard(*((float(onset), pitch) for onset in np.cumsum(waits)), seconds=float(sum(waits)))


SCALE = heard(*((n / 2, pitch) for n, pitch in enumerate((60, 62, 64, 65, 67, 69, 71, 72, 71, 69, 67, 65))))
BLACK = heard(*((n / 2, pitch) for n, pitch in enumerate((61, 63, 66, 68, 70, 73, 75, 78, 80, 82, 85, 87))))


def judged(
    monkeypatch: pytest.MonkeyPatch, made: Transcription, loudness: float = 0.1, **change: Any
) -> music.PianoScores:
    monkeypatch.setattr(music, "hear", lambda samples: made)
    samples = np.full(NEW, loudness, np.float32)
    samples[-2 * RATE :] *= change.pop("end", 1.0)
    options: dict[str, Any] = {
        "prompt": SCALE,
        "real": SCALE,
        "others": [BLACK],
        "tokens": LIVELY,
        "training": NOTHING,
    } | change
    return music.score(made=samples, **options)


def test_the_real_continuation_has_all_points(monkeypatch):
    score = judged(monkeypatch, SCALE)
    assert (score.key_kept, score.density_kept, score.level, score.intervals) == (1, 1, 0, 1)
    assert (score.rate_kept, score.tempo_kept, score.figures, score.flatness) == (1, 1, 1, 1)
    assert (score.silent, score.drones, score.loops) == (0, 0, 0)


def test_another_key_is_not_kept(monkeypatch):
    assert judged(monkeypatch, BLACK).key_kept == 0
    assert judged(monkeypatch, SCALE, others=[BLACK, SCALE]).key_kept == 0.5  # one of them is in the same key


def test_nothing_heard_keeps_nothing(monkeypatch):
    score = judged(monkeypatch, heard())
    assert (score.key_kept, score.density_kept, score.intervals) == (0, 0, 0)
    assert (score.rate_kept, score.tempo_kept) == (0, 0)
    assert np.isnan(score.figures)


def test_a_silent_prompt_says_nothing_of_key_and_density(monkeypatch):
    score = judged(monkeypatch, SCALE, prompt=heard())
    assert np.isnan([score.key_kept, score.density_kept, score.rate_kept, score.tempo_kept, score.figures]).all()


@pytest.mark.parametrize(("rate", "kept"), [(0.4, 0), (0.6, 1), (1.9, 1), (2.1, 0)])
def test_density_is_kept_within_a_factor_of_two(monkeypatch, rate, kept):
    notes = [(float(onset), 60) for onset in np.linspace(0, 6, round(12 * rate))]
    assert judged(monkeypatch, heard(*notes)).density_kept == kept


@pytest.mark.parametrize(
    ("factor", "rate", "tempo"), [(0.9, 1, 1), (1.1, 1, 1), (1.3, 0, 0), (0.75, 0, 0), (0.5, 0, 1), (2.05, 0, 1)]
)
def test_pace_is_kept_within_15_percent_and_tempo_in_any_metre(monkeypatch, factor, rate, tempo):
    score = judged(monkeypatch, beaten(*[0.5 * factor] * 12), prompt=beaten(*[0.5] * 12))
    assert (score.rate_kept, score.tempo_kept) == (rate, tempo)


def test_the_pulse_is_the_commonest_wait_however_unsteady(monkeypatch):
    waits = np.array([0.3] * 7 + [0.9, 1.1, 0.15, 0.6]) * np.random.default_rng(0).uniform(0.98, 1.02, 11)
    assert beaten(*waits).pulse == pytest.approx(1 / 0.3, rel=0.02)
    chords = heard(*((0.3 * n + strum, 60 + k) for n in range(8) for k, strum in enumerate((0, 0.01, 0.03))))
    assert chords.pulse == pytest.approx(1 / 0.3, rel=0.02)
    assert chords.rate == 8 / 6
    assert np.isnan(beaten(0.5, 0.5, 0.5).pulse)


def test_figures_are_the_prompts_own_in_any_octave(monkeypatch):
    turn, other = (60, 64, 62, 67), (61, 66, 63, 70)

    def tune(*pitches: int) -> Transcription:
        return heard(*((n / 4, pitch) for n, pitch in enumerate(pitches)))

    known = tune(*turn)
    assert judged(monkeypatch, tune(*turn, *turn), prompt=tune(*turn, *turn)).figures == 1
    assert judged(monkeypatch, tune(*(p + 12 for p in turn)), prompt=known).figures == 1
    assert judged(monkeypatch, tune(*other), prompt=known).figures == 0
    assert judged(monkeypatch, tune(*turn[:3], *other[:2]), prompt=known).figures == pytest.approx(1 / 3)


def test_flatness_is_relative_to_the_prompts_and_its_average_the_median(monkeypatch):
    scores = [judged(monkeypatch, SCALE._replace(flatness=f)) for f in (0.01, 0.02, 0.09)]
    found = music.summarise(["a", "b", "c"], scores)
    assert found["flatness"].mean == pytest.approx(2)
    assert found["flatness"].low == pytest.approx(1)
    assert found["noise"].mean == -30


def test_an_end_without_sound_is_silent_and_one_without_attacks_a_drone(monkeypatch):
    held = heard((0.1, 60), (1.0, 64))
    assert judged(monkeypatch, held).drones
    assert not judged(monkeypatch, held).silent
    quiet = judged(monkeypatch, held, end=0.01)
    assert (quiet.silent, quiet.drones) == (1, 0)


def test_the_same_tokens_again_and_again_are_a_loop(monkeypatch):
    assert judged(monkeypatch, SCALE, tokens=np.tile(LIVELY[:25], 4)).loops


def test_steps_go_between_the_highest_notes_of_attacks():
    chord = heard((0.0, 48), (0.01, 60), (0.5, 62), (0.52, 50), (1.0, 90))
    shares = music.steps(chord)
    assert (shares[REACH + 2], shares[2 * REACH], shares.sum()) == (0.5, 0.5, 1)


def test_cases_go_round_the_pieces_and_leave_out_what_is_short():
    lengths = {"a": [12, 12], "b": [9, 11], "c": [4]}
    clips, offset = [], 0
    for name, seconds in lengths.items():
        for n, length in enumerate(seconds):
            clips.append(Clip(f"{name}{n}", name, "", "", offset, length * RATE))
            offset += length * RATE
    corpus = Corpus(np.arange(offset).astype(np.int16), clips)
    cases = music.cases(corpus, 10)
    assert sorted(case.piece for case in cases[:2]) == ["a", "b"]
    assert [case.piece for case in cases[2:]] == ["a"]
    assert {(len(case.prompt), len(case.real)) for case in cases} == {(PROMPT, NEW)}
    assert [case.piece for case in music.cases(corpus, 10)] == [case.piece for case in cases]
    longer = music.cases(corpus, 10, new=8 * RATE)
    assert {(case.piece, len(case.real)) for case in longer} == {("a", 8 * RATE)}


def test_played_notes_are_heard():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("librosa")
    pytest.importorskip("basic_pitch", reason="needs what `make .venv/eval` installs")
    time = np.arange(6 * RATE) / RATE
    played = [(0.5, 60), (1.5, 64), (2.5, 67), (3.5, 72)]
    sound = np.zeros(len(time))
    for onset, pitch in played:
        since = time - onset
        partials = sum(np.sin(2 * np.pi * k * 440 * 2 ** ((pitch - 69) / 12) * since) / k**2 for k in range(1, 6))
        sound += np.where(since > 0, 0.2 * np.exp(-3 * since.clip(0)) * partials, 0)
    found = music.hear(sound.astype(np.float32))
    for onset, pitch in played:
        assert any(abs(at - onset) < 0.07 and key == pitch for at, key in zip(found.onsets, found.pitches, strict=True))
    assert len(found.pitches) <= 8
    assert found.seconds == 6
    assert found.noise < -50
    noisy = sound + 0.003 * np.random.default_rng(0).standard_normal(len(sound))
    assert music.hear(noisy.astype(np.float32)).noise > found.noise + 15


def test_single_notes_are_played_one_at_a_time():
    pytest.importorskip("mido", reason="needs the extra 'train'")
    try:
        cases = music.single_notes(2)
    except UsageError as error:
        pytest.skip(str(error))
    assert [(case.piece, len(case.prompt), len(case.real)) for case in cases] == [
        ("scale 0", PROMPT, NEW), ("scale 1", PROMPT, NEW)
    ]  # fmt: skip
    found = attacks(cases[0].real)  # but for those that the note before drowns
    assert 3 <= len(found) <= round(NEW / RATE / music.NOTES)
    assert np.abs((found - 0.05 + music.NOTES / 2) % music.NOTES - music.NOTES / 2).max() < 0.02
    assert not np.array_equal(cases[0].prompt, cases[1].prompt)
