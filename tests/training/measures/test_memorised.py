"""Stretches of an output that the training knows, against comparing everything with everything."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_cli.config import TokenSpec
from audiolm_cli.training.corpora.tokenize import TokenData, Track
from audiolm_cli.training.measures import memorised
from audiolm_cli.training.measures.memorised import LIVELY, NEEDED, PIECE, RUN, WIDTH, TrainingIndex


def brute_force(tracks: list[np.ndarray], tokens: np.ndarray) -> list[bool]:
    """What `known` should say."""
    known = []
    for place in range(len(tokens) - WIDTH + 1):
        stretch = tokens[place : place + WIDTH]
        seen = (track[i : i + WIDTH] for track in tracks for i in range(len(track) - WIDTH + 1))
        known.append(len(set(stretch.tolist())) >= LIVELY and any((stretch == s).sum() >= NEEDED for s in seen))
    return known


def speech(random: np.random.Generator, length: int) -> np.ndarray:
    """Tokens like those of speech: some much more frequent than others, and pauses of one token."""
    tokens = np.minimum(random.zipf(1.3, length), 500)
    for start in random.integers(length, size=length // 60):
        tokens[start : start + random.integers(40)] = random.integers(3)
    return tokens


def altered(random: np.random.Generator, tokens: np.ndarray, places: int) -> np.ndarray:
    """A copy with other tokens in so many places."""
    copy = tokens.copy()
    copy[random.choice(len(copy), places, replace=False)] += 1
    return copy


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(0, 2 * PIECE))
def test_as_by_brute_force(seed: int, differences: int, length: int) -> None:
    random = np.random.default_rng(seed)
    tracks = [speech(random, int(size)) for size in random.integers(400, size=4)]
    tokens = speech(random, length)
    for track in tracks:  # a near copy of each, anywhere, even over the end of the output
        copied = altered(random, track, min(len(track), differences * len(track) // WIDTH))[random.integers(400) :]
        start = int(random.integers(length + 1))
        tokens[start : start + len(copied)] = copied[: length - start]
    assert TrainingIndex(tracks).known(tokens).tolist() == brute_force(tracks, tokens)


@pytest.mark.parametrize("wrong", [[0, 1, 2, 3, 4], [8, 17, 26, 34, 42], [7, 15, 23, 31, 39], [45, 46, 47, 48, 49]])
def test_five_differences_are_found_wherever_they_are(wrong: list[int]) -> None:
    stretch = np.arange(WIDTH)
    copy = stretch.copy()
    copy[wrong] = 99
    assert TrainingIndex([stretch]).share(copy) == 1
    copy[(wrong[-1] + 5) % WIDTH] = 98
    assert TrainingIndex([stretch]).share(copy) == 0


def test_the_run_is_the_longest_that_every_match_has() -> None:
    assert RUN == 8
    assert (RUN - 1) * (WIDTH - NEEDED + 1) < NEEDED


def test_the_share_is_of_stretches() -> None:
    random = np.random.default_rng(0)
    training, new = random.integers(10**6, size=(2, 175))
    known = TrainingIndex([training])
    assert known.share(training) == 1
    assert known.share(new) == 0
    new[50:110] = training[20:80]  # 60 equal in a row: 11 stretches, and 5 more at both ends with differences
    assert known.share(new) == pytest.approx(21 / 126)


def test_no_stretch_runs_over_the_end_of_a_track() -> None:
    whole = np.arange(100)
    assert TrainingIndex([whole]).share(whole[25:75]) == 1
    assert TrainingIndex([whole[:50], whole[50:]]).share(whole[25:75]) == 0
    assert TrainingIndex([whole[:70], whole[70:]]).share(whole[25:75]) == 0  # though 45 of 50 are in the first
    assert TrainingIndex([whole[:49], whole[49:98]]).share(whole[:50]) == 0


def test_outputs_without_a_lively_stretch_have_no_share() -> None:
    training = TrainingIndex([np.zeros(500, int), np.arange(60)])
    for tokens in (np.arange(49), np.zeros(0, int), np.zeros(175, int), np.arange(60) % (LIVELY - 1)):
        assert math.isnan(training.share(tokens))
        assert not training.known(tokens).any()
        assert len(training.known(tokens)) == max(0, len(tokens) - WIDTH + 1)
    assert training.share(np.arange(50)) == 1


def test_pauses_do_not_count_beside_speech() -> None:
    random = np.random.default_rng(0)
    training = np.concatenate([np.zeros(100, int), random.integers(1, 10**6, size=100)])
    output = np.concatenate([np.zeros(100, int), random.integers(1, 10**6, size=100)])
    assert TrainingIndex([training]).share(output) == 0
    assert TrainingIndex([training]).share(training) == 1


def test_long_outputs_are_looked_up_whole() -> None:
    tokens = np.random.default_rng(0).integers(10**6, size=4 * PIECE + 7)
    training = TrainingIndex([tokens])
    assert training.known(tokens).all()
    assert training.share(tokens) == 1


def test_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    tracks, tokens = [random.integers(3, size=2000)], random.integers(3, size=200)
    monkeypatch.setattr(memorised, "LIVELY", 1)
    monkeypatch.setattr(memorised, "NEEDED", 25)  # by chance some are equal in half of their places
    whole = TrainingIndex(tracks).known(tokens)
    monkeypatch.setattr(memorised, "BLOCK", 7)
    assert 0 < whole.sum() < len(whole)
    assert TrainingIndex(tracks).known(tokens).tolist() == whole.tolist()


def test_training_without_a_stretch_knows_nothing() -> None:
    for tracks in ([], [np.arange(49)]):
        assert TrainingIndex(tracks).share(np.arange(60)) == 0


def test_tokens_of_a_split_keep_their_tracks() -> None:
    semantic = torch.arange(120)
    tracks = [Track("a", 0, 60), Track("b", 60, 60)]
    training = TrainingIndex.of(TokenData(TokenSpec(), semantic, torch.zeros(12, 240), tracks, {}))
    assert training.share(semantic[5:55].numpy()) == 1
    assert training.share(semantic[35:85].numpy()) == 0


def test_what_synthetic_speech_said_is_known_as_well():
    random, data = np.random.default_rng(0), []
    for length in (300, 200):
        tokens, tracks = torch.from_numpy(random.integers(0, 500, length)), [Track("a", 0, 100), Track("a", 100, 100)]
        data.append(TokenData(TokenSpec(), tokens, torch.zeros(12, 0), tracks, {}))
    real, synthetic = data
    said = synthetic.semantic[110:190].numpy()
    assert TrainingIndex.of(real).share(said) == 0
    assert TrainingIndex.of(real, synthetic).share(said) == 1
    assert TrainingIndex.of(real, synthetic).share(synthetic.semantic[60:140].numpy()) < 1  # no track runs into another
