"""Cases, trivial answers and what is said of a continuation, on made-up signals."""

import numpy as np
import pytest

from audiolm_cli.training import RATE
from audiolm_cli.training.corpora import data
from audiolm_cli.training.evaluation import continuations
from audiolm_cli.training.evaluation.continuations import NEW, PROMPT, SECOND, SpeechCase, SpeechScores, Voices
from audiolm_cli.training.measures.measures import SpokenClip
from audiolm_cli.training.measures.memorised import TrainingIndex


@pytest.fixture(autouse=True)
def _plain_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A voice is the mean level; everything is speech of quality 3."""
    monkeypatch.setattr(
        continuations, "voice", lambda samples: np.array([samples.mean(), 1]) / np.hypot(samples.mean(), 1)
    )
    monkeypatch.setattr(continuations, "speech_fraction", lambda samples: float((samples != 0).mean()))
    monkeypatch.setattr(continuations, "dnsmos", lambda samples: 3.0)


def ramp(seconds: float, start: float = 0) -> np.ndarray:
    return (np.arange(int(seconds * RATE)) + start).astype(np.float32)


def test_a_single_recording_gives_cases_at_both_ends_with_the_rest_as_reference(monkeypatch):
    heard: list[np.ndarray] = []

    def voice(samples: np.ndarray) -> np.ndarray:
        heard.append(samples)
        return samples[:1]

    monkeypatch.setattr(continuations, "voice", voice)
    cases = continuations.cases([SpokenClip("a", ramp(14))], 10)
    assert [case.prompt[0] for case in cases] == [0, 4 * RATE]
    assert [len(case.real) for case in cases] == [NEW, NEW]
    assert all(case.real[0] == case.prompt[-1] + 1 for case in cases)
    assert [(part[0], len(part)) for part in heard] == [(10 * RATE, 4 * RATE), (0, 4 * RATE)]


def test_recordings_too_short_give_no_case():
    assert continuations.cases([SpokenClip("a", ramp(12)), SpokenClip("b", ramp(5))], 10) == []


def test_speakers_with_many_clips_keep_some_for_reference():
    cases = continuations.cases([SpokenClip("a", ramp(11, start=1000 * n)) for n in range(6)], 10)
    assert [case.prompt[0] for case in cases] == [3000, 4000, 5000]


def test_cases_go_round_the_speakers():
    clips = [SpokenClip(name, ramp(14)) for name in "abcd"]
    assert {case.speaker for case in continuations.cases(clips, 4)} == set("abcd")
    assert continuations.cases(clips, 3)[0].speaker == continuations.cases(clips, 3)[0].speaker


def test_a_loop_is_found_and_speech_is_not():
    random = np.random.default_rng(0)
    second = random.integers(500, size=SECOND)
    assert continuations.loops(np.tile(second, 3))
    assert continuations.loops(np.zeros(7 * SECOND, int))
    assert not continuations.loops(np.tile(second, 2))
    assert not continuations.loops(random.integers(500, size=7 * SECOND))
    assert not continuations.loops(second[:5])


def test_alike_finds_a_stretch_with_a_few_differences():
    random = np.random.default_rng(0)
    a, b = random.integers(500, size=80), random.integers(500, size=60)
    b[10:35] = a[40:65]
    b[12] = -1
    found = np.argwhere(continuations.alike(a, b))
    assert [40, 10] in found.tolist()
    assert len(found) < 15


def test_copies_of_the_prompt_are_found_but_pauses_do_not_count():
    random = np.random.default_rng(0)
    prompt, new = random.integers(500, size=75), random.integers(500, size=175)
    assert not continuations.copies(new, prompt)
    assert continuations.copies(np.concatenate([new[:50], prompt[20:60], new[90:]]), prompt)
    assert not continuations.copies(np.zeros(175, int), np.zeros(75, int))


def test_pasted_clips_are_as_long_as_a_continuation():
    case = SpeechCase("a", ramp(3), ramp(7), np.zeros(2))
    corpus = data.Corpus(
        np.ones(9 * RATE, np.int16),
        [data.Clip("x", "b", "", "", 0, 9 * RATE), data.Clip("y", "b", "", "", 0, 5)],
    )
    assert [len(answer) for answer in continuations.pasted([case, case], corpus)] == [NEW, NEW]


def test_the_speaker_matches_by_the_reference_of_the_case():
    voices = Voices(["a", "b"], np.array([[1.0, 0.0], [0.0, 1.0]]))
    case = SpeechCase("a", np.ones(PROMPT, np.float32), np.ones(NEW, np.float32), np.array([0.6, 0.8]))
    tokens = np.arange(175)
    for level, match in ((2.0, 1.0), (0.05, 0.0)):
        new = np.full(NEW, level, np.float32)
        score = continuations.score(case, new, voices, lambda samples: tokens, tokens[:0])
        assert score[:-1] == (match, 1.0, 3.0, 0.0, 0.0, 0.0, 0.0)
        assert np.isnan(score.memorised)
    learned = continuations.score(case, new, voices, lambda samples: tokens, tokens[:0], TrainingIndex([tokens]))
    assert learned.memorised == 1
    held = np.array([7, 7, 7, 8, 9])
    assert continuations.score(case, new, voices, lambda samples: held, tokens[:0]).repeats == 0.5
    quiet = np.zeros(NEW, np.float32)
    assert continuations.score(case, quiet, voices, lambda samples: tokens, tokens[:0]).silent == 1


def test_summary_has_every_score():
    cases = [SpeechCase(name, ramp(3), ramp(7), np.zeros(2)) for name in "ab"]
    scores = [
        SpeechScores(1.0, 0.8, 3.0, 0.1, 0.0, 0.0, 0.0, 0.0),
        SpeechScores(0.0, 0.2, 2.0, 0.2, 1.0, 0.0, 0.0, 0.0),
    ]
    summary = continuations.summarise([case.speaker for case in cases], scores)
    assert set(summary) == set(SpeechScores._fields)
    assert summary["speaker_match"].mean == 0.5
