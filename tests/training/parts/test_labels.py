"""What the tokenizer's training predicts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from audiolm_cli.config import preset
from audiolm_cli.tokenizer.semantic import SemanticTokenizer
from audiolm_cli.training.corpora.data import Clip, Corpus
from audiolm_cli.training.parts import labels
from audiolm_cli.training.parts.kmeans import best_of, kmeans
from audiolm_cli.training.parts.labels import PITCHES

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
    return labels.pitch_points(tokenizer, corpus(*recordings), CPU)


def test_a_key_is_loudest_in_its_own_band() -> None:
    bands = labels.pitch_bands(CPU)
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


def test_the_best_of_several_seedings_is_taken() -> None:
    points = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    spread = lambda c: float(torch.cdist(points, c).amin(1).square().sum())  # noqa: E731
    each = [spread(kmeans(points, 20, 3, seed)) for seed in range(4)]
    assert spread(best_of(4, points, 20, 3)) == pytest.approx(min(each))
    assert min(each) < each[0]
