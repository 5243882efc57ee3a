"""The classes of a piano's tokens: which keys begin, or what still sounds."""

from __future__ import annotations

import numpy as np
import torch

from audiolm_cli.training.parts import note_teacher
from audiolm_cli.training.parts.kmeans import members
from audiolm_cli.training.parts.note_teacher import APART, SECONDS, points


def notes(*rows: tuple[float, float, int, int]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Of the first attacks of two performances."""
    first, second = (found[found[:, 0] > APART / 2][0] for found in (points(a, 50), points(b, 50)))
    return float((first - second).norm())


def test_a_token_has_the_attacks_that_begin_in_it():
    found = points(notes((0.1, 1.0, 60, 64), (0.119, 1.0, 67, 64), (0.5, 1.0, 62, 64), (-0.5, 0.3, 50, 64)), 50)
    assert torch.nonzero(found[:, 0] > APART / 2).flatten().tolist() == [2, 3, 12]  # 0.119 s is heard in the next token
    assert found.shape == (50, note_teacher.DIMENSIONS)


def test_the_highest_key_counts_most_and_inner_ones_least():
    chord = notes((0.1, 1, 48, 64), (0.1, 1, 64, 64), (0.1, 1, 72, 64))
    moved = [
        notes((0.1, 1, 48 + a, 64), (0.1, 1, 64 + b, 64), (0.1, 1, 72 + c, 64)) for a, b, c in np.eye(3, dtype=int)
    ]
    low, inner, high = (distance(chord, other) for other in moved)
    assert inner < low < high
    louder = chord.copy()
    louder[:, 3] = 100
    assert 0 < distance(chord, louder) < inner


def test_an_octave_is_nearer_than_another_pitch_class():
    one = notes((0.1, 1, 60, 64))
    assert distance(one, notes((0.1, 1, 72, 64))) < distance(one, notes((0.1, 1, 71, 64)))


def test_without_an_attack_harmony_and_level_count_until_all_is_silent():
    found = points(notes((0.0, 1.5, 60, 64), (0.0, 1.5, 64, 64)), 50)
    later = found[2:]
    assert (later[:, 0] == 0).all()
    sounding = later[: round(1.5 / SECONDS) - 3]
    assert (sounding[:, 1].diff() < 0).all()  # it decays
    assert ((sounding[:, 89:101] > 0.1).nonzero()[:, 1].reshape(-1, 2) == torch.tensor([0, 4])).all()
    assert (later[-5:, 2:] == 0).all()


def test_most_classes_are_of_attacks():
    random = np.random.default_rng(0)
    played = [
        (t, t + 0.4, int(random.integers(40, 90)), int(random.integers(30, 100))) for t in np.arange(0, 200, 0.25)
    ]
    found = points(notes(*played), 5000)
    centroids = note_teacher.centroids(found, 64)
    attacks = centroids[:, 0] > APART / 2
    assert attacks.tolist() == [False] * 4 + [True] * 60
    own = centroids[members(found, centroids)]
    assert torch.equal(own[:, 0] > APART / 2, found[:, 0] > APART / 2)
