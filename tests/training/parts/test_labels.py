"""What the tokenizer's training predicts, and how its inputs are changed."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from audiolm_cli.config import preset
from audiolm_cli.tokenizer.semantic import SemanticTokenizer
from audiolm_cli.training.corpora.data import Clip, Corpus
from audiolm_cli.training.parts import tokenizer as training
from audiolm_cli.training.parts.kmeans import best_of, kmeans
from audiolm_cli.training.parts.tokenizer import PITCHES

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


def test_only_voices_are_stretched() -> None:
    mel = torch.zeros(64, 8, 40)
    mel[:, :, 20] = 30.0  # louder than any noise and channel
    places = {
        voice: training.perturb(mel, torch.Generator().manual_seed(0), voice).argmax(-1).unique()
        for voice in (True, False)
    }
    assert places[False].tolist() == [20]
    assert len(places[True]) > 1


def conversation(*pitches: int) -> Corpus:
    """One "voice" for each pitch, all saying the same: noise bands that come and go."""
    random = np.random.default_rng(0)
    said = np.repeat(random.uniform(0.02, 0.5, 60), 1600)  # a loudness for every tenth of a second
    tones = [played(pitch, seconds=6.0) for pitch in pitches]
    return corpus(*(said * (tone / np.abs(tone).max() + 0.1 * random.standard_normal(len(tone))) / 2 for tone in tones))


def trained(directions: int) -> training.TokenizerTraining:
    torch.manual_seed(0)
    config = preset("tiny")
    return training.TokenizerTraining(
        dataclasses.replace(config.tokenizer, directions=directions), config.tokens
    ).eval()


def test_directions_leave_out_who_speaks() -> None:
    """A centroid tells less of the voice along the directions than in the hidden states themselves."""
    sound, told = conversation(40, 52, 64, 76), {}
    for directions in (0, 12):
        shipped = training.finish(trained(directions), sound, 16)
        assert shipped.centroids.shape == (16, directions or 32)
        heard = torch.stack([training.heard(shipped, sound.samples(clip)) for clip in sound.clips])
        points = shipped.points(heard)  # [voices, S, D]
        told[directions] = float(points.mean(1).var(0).sum() / points.var((0, 1)).sum())
    assert told[12] < 0.5 * told[0]


def test_a_new_round_keeps_the_old_numbers() -> None:
    sound, state = conversation(45, 57), trained(12)
    old = training.finish(state, sound, 16)
    mixed = copy.deepcopy(old)
    mixed.centroids.copy_(mixed.centroids[torch.randperm(16, generator=torch.Generator().manual_seed(0))])
    training.keep_numbers(mixed, old, sound)
    used = training.own_labels(old, sound).unique()
    assert len(used) > 8
    assert torch.equal(mixed.centroids[used], old.centroids[used])
    with torch.no_grad():
        for parameter in state.tokenizer.layers.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    further = training.finish(state, sound, 16)
    same = {}
    for kept in (False, True):
        if kept:
            training.keep_numbers(further, old, sound)
        same[kept] = float((training.own_labels(further, sound) == training.own_labels(old, sound)).float().mean())
    assert same[True] > 0.4 > same[False]


def test_the_best_of_several_seedings_is_taken() -> None:
    points = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    spread = lambda c: float(torch.cdist(points, c).amin(1).square().sum())  # noqa: E731
    each = [spread(kmeans(points, 20, 3, seed)) for seed in range(4)]
    assert spread(best_of(4, points, 20, 3)) == pytest.approx(min(each))
    assert min(each) < each[0]
