"""How the tokenizer's training perturbs its inputs, and which clusters ship."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import torch

from audiolm_cli.config import preset
from audiolm_cli.training.corpora.data import Corpus
from audiolm_cli.training.parts import tokenizer as training
from audiolm_cli.training.parts.labels import own_labels
from tests.training.parts.test_labels import corpus, played


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
        heard = torch.stack([training.hidden_states(shipped, sound.samples(clip)) for clip in sound.clips])
        points = shipped.points(heard)  # [voices, S, D]
        told[directions] = float(points.mean(1).var(0).sum() / points.var((0, 1)).sum())
    assert told[12] < 0.5 * told[0]


def test_a_new_round_keeps_the_old_numbers() -> None:
    sound, state = conversation(45, 57), trained(12)
    old = training.finish(state, sound, 16)
    mixed = copy.deepcopy(old)
    mixed.centroids.copy_(mixed.centroids[torch.randperm(16, generator=torch.Generator().manual_seed(0))])
    training.keep_numbers(mixed, old, sound)
    used = own_labels(old, sound).unique()
    assert len(used) > 8
    assert torch.equal(mixed.centroids[used], old.centroids[used])
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in state.tokenizer.layers.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    further = training.finish(state, sound, 16)
    same = {}
    for kept in (False, True):
        if kept:
            training.keep_numbers(further, old, sound)
        same[kept] = float((own_labels(further, sound) == own_labels(old, sound)).float().mean())
    assert same[True] > 0.4
    assert same[False] < same[True] - 0.2
