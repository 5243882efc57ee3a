"""Judging resynthesis, with stand-ins for the networks that judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from audiolm_cli import pipeline
from audiolm_cli.config import Sampling, preset
from audiolm_cli.training.corpora.data import Corpus
from audiolm_cli.training.evaluation import resyntheses, speech
from audiolm_cli.training.evaluation.continuations import SpeechCase, Voices
from audiolm_cli.training.evaluation.setting import Setting
from audiolm_cli.training.measures import pitch
from audiolm_cli.training.measures.measures import Figure
from audiolm_cli.training.measures.recogniser import RecognisedWords
from tests.helpers.bundles import in_memory


def case(speaker: str, direction: int) -> SpeechCase:
    sound = np.full(7, direction + 1.0, np.float32)
    return SpeechCase(speaker, sound[:3], sound, np.eye(3, dtype=np.float32)[direction])


CASES = [case(speaker, n) for n, speaker in enumerate("abc")]
MELODY = np.sin(np.arange(100.0))
VOICES = Voices(list("abc"), np.eye(3, dtype=np.float32))


@pytest.fixture(autouse=True)
def _judges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sound's first sample, less one, is its speaker."""
    monkeypatch.setattr(resyntheses, "voice", lambda made: np.eye(3)[int(made[0]) - 1])
    monkeypatch.setattr(resyntheses, "dnsmos", lambda made: 3.0)
    monkeypatch.setattr(pitch, "contour", lambda made: MELODY * made[0])


def test_a_reference_speaks_in_none_of_its_sources() -> None:
    groups = resyntheses.pairings(CASES, 15)
    assert [len(group) for group in groups] == [5, 5, 5]
    for group in groups:
        assert len({pairing.reference.speaker for pairing in group}) == 1
        assert all(pairing.source.speaker != pairing.reference.speaker for pairing in group)


def test_whose_voice_it_is() -> None:
    pairing = resyntheses.Pairing(CASES[0], CASES[1])
    tokens = np.arange(10)
    scores = [
        resyntheses.score(pairing, np.full(7, 1.0 + n, np.float32), VOICES, tokens, tokens[: 10 - n], -MELODY)
        for n in range(3)
    ]
    assert [(s.speaker_is_reference, s.speaker_is_source) for s in scores] == [(0, 1), (1, 0), (0, 0)]
    assert [s.token_error for s in scores] == [0, 0.1, 0.2]
    assert [s.pitch_correlation for s in scores] == pytest.approx([-1, -1, -1])  # whatever the register


def test_the_table_tells_the_output_from_its_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A perfect pipeline: the reference's voice, the source's tokens."""
    monkeypatch.setattr(speech.phones, "as_function", lambda _: lambda sound: np.arange(len(sound)))
    monkeypatch.setattr(speech, "autoencoder", lambda *_: lambda sound: sound)
    heard = lambda name, cache: lambda sound: RecognisedWords(["a", "b"], 0.0)  # noqa: E731
    monkeypatch.setattr(speech.recogniser, "recogniser", heard)
    monkeypatch.setattr(speech.recogniser, "own_error", lambda *_: Figure(0.25, 0, 1))
    references: list[int] = []

    def said(bundle, request, prompts, speaker, **_):
        references.append(len(speaker))
        return [pipeline.Output(np.resize(speaker, 7), torch.zeros(0), torch.zeros(12, 0)) for _ in prompts]

    monkeypatch.setattr(pipeline, "resynth", said)
    bundle, nothing = in_memory(preset("tiny"), {}), Corpus(np.zeros(0, np.int16), [])
    vars(bundle).update(tokenizer=None, codec=None)
    monkeypatch.setattr(Setting, "_cases", (CASES, VOICES))
    samplings = {"AudioLM": Sampling()}
    asked = Setting(bundle, nothing, nothing, tmp_path, quick=True, prompts=20, samplings=samplings)
    ((title, table),) = speech.resynthesis_tables(asked).items()
    assert title.startswith("10 resyntheses")
    assert (table["AudioLM"]["speaker_is_reference"].mean, table["AudioLM"]["speaker_is_source"].mean) == (1, 0)
    assert table["AudioLM, after 10 s"]["speaker_is_reference"].mean == 1
    assert set(references) == {len(CASES[0].prompt), len(CASES[0].prompt) + len(CASES[0].real)}
    assert (table["source"]["speaker_is_reference"].mean, table["source"]["speaker_is_source"].mean) == (0, 1)
    assert table["AudioLM"]["token_error"].mean == table["source"]["word error, base"].mean == 0
    errors = {f"word error, {name}": Figure(0.25, 0, 1) for name in speech.recogniser.NAMES}
    assert table["recordings, beside their transcripts"] == errors
