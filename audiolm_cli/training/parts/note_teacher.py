"""The notes of a performance as the teacher of a piano's semantic tokenizer.

What is played is known for every rendered recording (`corpora.piano_notes`). A token covers 40 ms. Most have no attack,
and their classes say what still sounds: harmony, level and register. The classes of attacks say which keys begin: the
highest above all, then the lowest, then the others, and their pitch classes. Both are k-means clusters of their own
points, so however many tokens have no attack, most classes are of attacks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from audiolm_cli.training import RATE
from audiolm_cli.training.corpora import piano
from audiolm_cli.training.parts.kmeans import kmeans
from audiolm_cli.training.parts.teacher import FRAME, TOKEN_FRAMES

SECONDS = TOKEN_FRAMES * FRAME / RATE  # of a token
LOWEST, KEYS = piano.KEYS[0], len(piano.KEYS)
# attack or not; keys (without an attack the first of these is the level); pitch classes; loudness, or register
DIMENSIONS = 1 + KEYS + 12 + 1
APART = 100.0  # between the points of tokens with and without an attack: farther than any two of one kind
SUSTAINED = 16  # one class in so many is of tokens without attacks
LATE = 0.004  # s after its onset from which on a note is heard
HIGHEST, LOWEST_NOTE, INNER = 1.5, 1.0, 0.7  # weights of the keys of a chord
CLASS, LOUDNESS = 0.8, 0.3  # weights of pitch classes and of the velocity, per octave of it
RING = ((21, 108), (3.0, 0.4))  # keys, and the time constants in s of how they decay
HARMONY, LEVEL, REGISTER = 1.0, 0.7, 0.5  # weights without an attack: pitch classes; level, nepers; octaves
SILENT = -4.0  # level in nepers below a medium note: nothing sounds


def points(notes: np.ndarray, tokens: int) -> Tensor:
    """Notes `[N, 4]` (`piano_notes`) -> the points `float32 [tokens, DIMENSIONS]` whose clusters are the classes."""
    found = sustained(notes, tokens)
    onsets, _, keys, velocities = notes.T
    place = np.floor((onsets + LATE) / SECONDS).astype(int)
    for token in np.unique(place[(place >= 0) & (place < tokens)]):
        own = place == token
        found[token] = attack(keys[own].astype(int), velocities[own])
    return torch.from_numpy(found)


def centroids(found: Tensor, size: int) -> Tensor:
    """`size` classes of points `[N, DIMENSIONS]`, `float32 [size, DIMENSIONS]`, those without an attack first."""
    attacks, quiet = found[:, 0] > APART / 2, sustained_classes(size)
    return torch.cat([kmeans(found[~attacks], quiet), kmeans(found[attacks], size - quiet)])


def sustained_classes(size: int) -> int:
    """How many of `size` classes, the first ones, are of tokens without an attack."""
    return size // SUSTAINED


def attack(keys: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """The point of keys that begin together."""
    point = np.zeros(DIMENSIONS, np.float32)
    point[0] = APART
    point[1 + keys - LOWEST] = INNER
    point[1 + keys.min() - LOWEST] = LOWEST_NOTE
    point[1 + keys.max() - LOWEST] = HIGHEST
    point[1 + KEYS + keys % 12] = CLASS
    point[-1] = LOUDNESS * np.log2(max(float(velocities.max()), 1.0) / 64)
    return point


def sustained(notes: np.ndarray, tokens: int) -> np.ndarray:
    """The points of tokens without an attack, `[tokens, DIMENSIONS]`: what sounds in the middle of each."""
    found = np.zeros((tokens, DIMENSIONS), np.float32)
    classes, total, high = np.zeros((tokens, 12)), np.zeros(tokens), np.zeros(tokens)
    for onset, end, key, velocity in notes:
        first, last = max(0, int(np.ceil(onset / SECONDS - 0.5))), min(tokens, int(np.ceil(end / SECONDS - 0.5)))
        if last <= first:
            continue
        age = (np.arange(first, last) + 0.5) * SECONDS - onset
        loud = velocity / 64 * np.exp(-age / np.exp(np.interp(key, RING[0], np.log(RING[1]))))
        classes[first:last, int(key) % 12] += loud
        total[first:last] += loud
        high[first:last] += loud * (key - 60) / 12
    heard = np.maximum(total, 1e-3)
    found[:, 1 + KEYS : -1] = HARMONY * classes / np.maximum(np.sqrt(np.square(classes).sum(1)), 1e-3)[:, None]
    found[:, 1] = LEVEL * np.maximum(np.log(heard), SILENT)
    found[:, -1] = REGISTER * high / heard
    found[total < np.exp(SILENT), 2:] = 0
    return found
