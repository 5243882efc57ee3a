"""What the tokenizer's training predicts, and how its inputs are changed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from audiolm_cli.config import preset
from audiolm_cli.semantic import SemanticTokenizer
from audiolm_cli.training import tokenizer as training
from audiolm_cli.training.data import Clip, Corpus
from audiolm_cli.training.tokenizer import PITCHES

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer() -> SemanticTokenizer:
    config = preset("tiny")
    return SemanticTokenizer(config.tokenizer, config.tokens)


def played(*pitches: int, seconds: float = 1.0, loudness: float = 0.3) -> np.ndarray:
    """Keys one after another, each a few partials that die away."""
    time = np.arange(round(16000 * seconds)) / 16000
    tones = []
    for pitch in pitches:
        partials = sum(np.sin(2 * np.pi * k * 440 * 2 ** ((pitch - 69) / 12) * time) / k**2 for k in range(1, 5))
        tones.append(loudness * np.exp(-2 * time) * partials)
    return np.concatenate(tones)


def corpus(*recordings: np.ndarray) -> Corpus:
    clips, offset = [], 0
    for n, sound in enumerate(recordings):
        clips.append(Clip(str(n), str(n), "", "", offset, len(sound)))
        offset += len(sound)
    return Corpus((np.concatenate(recordings) * 32767 / 2).astype(np.int16), clips)


def points(tokenizer: SemanticTokenizer, *recordings: np.ndarray) -> Tensor:
    return training.pitch_points(tokenizer, corpus(*recordings), CPU)


def test_a_key_is_loudest_in_its_own_band() -> None:
    bands = training.pitch_bands(CPU)
    assert bands.shape == (2049, len(PITCHES))
    for pitch in (57, 69, 93):
        frequency = 440 * 2 ** ((pitch - 69) / 12)
        assert bands[round(frequency * 4096 / 16000)].argmax() == pitch - PITCHES[0]


def test_points_tell_keys_apart_and_attacks_from_what_rings(tokenizer: SemanticTokenizer) -> None:
    keys = (48, 55, 60, 64, 67, 72, 50, 65)
    found = points(tokenizer, played(*keys, *keys))
    assert found.shape == (len(keys) * 50, len(PITCHES) + 12 + 2)
    middles = 12 + 25 * torch.arange(2 * len(keys))
    first, second = found[middles].chunk(2)
    assert torch.cdist(first, second).argmin(1).tolist() == list(range(len(keys)))  # the same key, later
    attack = found[:, -1]
    near = torch.stack([attack[25 * torch.arange(1, 16) + shift] for shift in range(-3, 2)]).amax(0)
    assert near.min() > attack[middles].max() + 1


def test_what_is_normalised_over_a_recording_is_not_over_the_corpus(tokenizer: SemanticTokenizer) -> None:
    """Of a voice the recording's mean goes, of a piano it stays: it is the key."""
    sound = corpus(played(48, 50, 52, 53, seconds=4.0), played(84, 86, 88, 89, seconds=4.0))
    half = 16 * 25
    for by_recording in (True, False):
        found = training.hidden_points(tokenizer, sound, CPU, by_recording)
        apart = (found[:half].mean(0) - found[half:].mean(0)).abs().mean()
        assert (float(apart) < 0.01) == by_recording


def test_only_voices_are_stretched() -> None:
    mel = torch.zeros(64, 8, 40)
    mel[:, :, 20] = 30.0  # louder than any noise and channel
    places = {
        voice: training.perturb(mel, torch.Generator().manual_seed(0), voice).argmax(-1).unique()
        for voice in (True, False)
    }
    assert places[False].tolist() == [20]
    assert len(places[True]) > 1


def test_all_directions_count_where_none_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CLUSTERED_BATCHES", 1)
    config = preset("tiny")
    state = training.TokenizerTraining(config.tokenizer, config.tokens).eval()
    sound = corpus(np.random.default_rng(0).uniform(-0.5, 0.5, 80000))
    ranks = {}
    for share in (0.0, 0.25):
        shipped = training.finish(state, sound, 40, voices=share)
        values = torch.linalg.svdvals(shipped.centroids)
        ranks[share] = int((values > 0.02 * values[0]).sum())
    assert ranks[0.25] <= 0.75 * 32 + 1 < ranks[0.0]
