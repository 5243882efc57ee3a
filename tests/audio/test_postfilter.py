"""What outputs pass on their way out: a stream gets what a file gets, nothing rumbles, clips, pumps or rises from
silence."""

from __future__ import annotations

import numpy as np
import pytest

from audiolm_cli.audio import files, postfilter
from audiolm_cli.audio.postfilter import (
    ATTACK,
    FRAMES,
    HighPass,
    LevelControl,
    Limiter,
    PostFilter,
    active_level,
    powers,
)
from audiolm_cli.config import OutputConfig
from tests.helpers import EXAMPLE

RATE = 16000
SPEECH = OutputConfig()


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return files.read(EXAMPLE, RATE).samples


def tone(pitch: float, seconds: float, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * pitch * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def decibel(samples: np.ndarray) -> float:
    return float(10 * np.log10(np.square(samples, dtype=float).mean() + 1e-12))


def loudness(samples: np.ndarray) -> float:
    return float(10 * np.log10(active_level(powers(samples, RATE)) + 1e-12))


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_any_size_give_the_samples_of_the_whole(speech: np.ndarray, follow: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    made = np.concatenate([speech, 4 * speech[:20000], np.zeros(3000), tone(50, 1.0)]).astype(np.float32)
    prompt = made[::-1].copy() if follow else speech
    begin = 0 if follow else len(speech)
    whole = postfilter.chain(SPEECH, RATE, prompt, begin, follow).whole(made)
    assert len(whole) == len(made)
    stream, parts, start = postfilter.chain(SPEECH, RATE, prompt, begin, follow), [], 0
    while start < len(made):
        size = int(rng.integers(1, rng.choice([3, 100, 5000])))
        parts.append(stream.push(made[start : start + size]))
        start += size
        assert sum(map(len, parts)) >= min(start, len(made)) - 0.02 * RATE  # what it waits for
    assert np.array_equal(np.concatenate([*parts, stream.finish()]), whole)


def test_nothing_depends_on_what_comes_20_ms_later(speech: np.ndarray) -> None:
    cut = 30001
    other = np.concatenate([speech[:cut], 3 * tone(300, 1.0)]).astype(np.float32)
    one, two = (postfilter.chain(SPEECH, RATE, speech, 8000).whole(made) for made in (speech, other))
    known = cut - round(0.02 * RATE)
    assert np.array_equal(one[:known], two[:known])
    assert not np.array_equal(one[:cut], two[:cut])


@pytest.mark.parametrize("samples", [0, 1, 79, 80, 81, 400])
def test_short_sound_keeps_its_length(samples: int) -> None:
    assert len(postfilter.chain(SPEECH, RATE).whole(tone(300, 1.0)[:samples])) == samples


@pytest.mark.parametrize(
    ("pitch", "least", "most"), [(20, 35, 99), (50, 35, 99), (58, 35, 99), (80, 0, 0.3), (300, 0, 0.01)]
)
def test_what_lies_below_speech_is_taken_away(pitch: float, least: float, most: float) -> None:
    sound = tone(pitch, 4.0)
    lost = decibel(sound[RATE:]) - decibel(PostFilter(RATE, [HighPass(RATE, 70.0)]).whole(sound)[RATE:])
    assert least <= abs(lost) <= most


def test_a_constant_is_taken_away_without_a_thump() -> None:
    filtered = PostFilter(RATE, [HighPass(RATE, 70.0)]).whole(np.full(RATE, 0.5, np.float32))
    assert np.abs(filtered).max() < 0.01


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100])
@pytest.mark.parametrize("corner", [25.0, 70.0])
def test_the_corner_is_where_it_should_be_at_any_rate(rate: int, corner: float) -> None:
    time = np.arange(4 * rate) / rate
    sound = (0.3 * np.sin(2 * np.pi * corner * time)).astype(np.float32)
    filtered = PostFilter(rate, [HighPass(rate, corner)]).whole(sound)
    assert decibel(sound[rate:]) - decibel(filtered[rate:]) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("pitch", [90.0, 120.0, 250.0, 1000.0])
def test_what_models_hear_keeps_its_phase_up_to_the_end(pitch: float) -> None:
    voice, hum = tone(pitch, 1.0), 0.05 + tone(50.0, 1.0, 0.1)
    clean = postfilter.without_rumble(voice + hum, RATE, 70.0)
    assert len(clean) == len(voice)
    assert decibel((clean - voice)[1600:-1600]) < decibel(voice) - 40
    assert decibel((clean - voice)[-320:]) < decibel(voice) - 4
    assert np.array_equal(postfilter.without_rumble(voice + hum / 4, RATE, 70.0), voice + hum / 4)  # as recordings have


@pytest.mark.parametrize("samples", [0, 1, 2, 79, 81, 900])
def test_short_recordings_lose_their_rumble_too(samples: int) -> None:
    clean = postfilter.without_rumble(np.full(samples, 0.5, np.float32), RATE, 70.0)
    assert len(clean) == samples
    assert np.abs(clean).max(initial=0) < 1e-6


def test_loud_sound_is_limited_and_other_sound_is_as_it_was(speech: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for loud in (5 * speech / np.abs(speech).max(), rng.standard_normal(RATE), np.eye(1, RATE, 5000)[0] * 9):
        limited = PostFilter(RATE, [Limiter()], ATTACK).whole(loud.astype(np.float32))
        assert 0.85 < np.abs(limited).max() <= postfilter.CEILING
    assert np.array_equal(PostFilter(RATE, [Limiter()], ATTACK).whole(speech), speech)
    assert np.abs(postfilter.limited(3 * speech, RATE)).max() <= 1


def test_the_limiters_gain_has_no_steps() -> None:
    sound = tone(1000, 2.0, 0.5)
    sound[RATE:] *= 3
    gains = PostFilter(RATE, [Limiter()], ATTACK).whole(sound) / np.where(np.abs(sound) > 0.1, sound, np.nan)
    places = np.flatnonzero(~np.isnan(gains))
    assert np.nanmax(np.abs(np.diff(gains[places]))) < 0.02


def controlled(made: np.ndarray, prompt: np.ndarray, stray: float = 1.5) -> np.ndarray:
    """What the level control alone makes of the sound behind a prompt."""
    begin = len(prompt) // (RATE // FRAMES)
    control = LevelControl(active_level(powers(prompt, RATE)), stray, begin)
    return PostFilter(RATE, [control]).whole(np.concatenate([prompt, made]))


@pytest.mark.parametrize("change", [-8, -5, 5, 10, 15])
def test_the_level_of_the_prompt_is_kept(speech: np.ndarray, change: float) -> None:
    prompt = speech[: len(speech) // 80 * 80]
    made = (np.tile(prompt, 3) * 10 ** (change / 20)).astype(np.float32)
    heard = controlled(made, prompt)
    assert np.array_equal(heard[: len(prompt)], prompt)
    new = heard[len(prompt) :]
    assert abs(loudness(new[len(prompt) :]) - loudness(prompt)) < 3
    assert abs(loudness(new[2 * len(prompt) :]) - loudness(prompt)) < 2.2
    gains = new / np.where(np.abs(made) > 1e-3, made, np.nan)
    steps = np.diff(gains[~np.isnan(gains)]) / gains[~np.isnan(gains)][1:]
    assert np.abs(steps).max() < 0.05  # no jump anywhere, and none at the join
    assert abs(np.nanmedian(gains[:160]) - 1) < 0.05


def test_sound_at_the_prompts_level_is_left_alone(speech: np.ndarray) -> None:
    prompt = speech[: len(speech) // 80 * 80]
    made = np.tile(prompt, 3)
    assert loudness(controlled(made, prompt)[len(prompt) :]) == pytest.approx(loudness(made), abs=1)
    steady = tone(300, 5.0)
    assert np.array_equal(controlled(steady, steady), np.concatenate([steady, steady]))
    piano = (made * 0.25).astype(np.float32)  # 12 dB
    assert np.array_equal(controlled(piano, prompt, stray=13)[len(prompt) :], piano)


def test_pauses_and_noise_are_not_lifted(speech: np.ndarray) -> None:
    prompt = speech[: len(speech) // 80 * 80]
    hiss = np.random.default_rng(0).normal(0, 10 ** (-60 / 20), 8 * RATE).astype(np.float32)
    assert np.array_equal(controlled(hiss, prompt)[len(prompt) :], hiss)
    quiet = (np.concatenate([prompt, hiss, prompt]) * 10 ** (-6 / 20)).astype(np.float32)
    gains = controlled(quiet, prompt)[len(prompt) :] / np.where(quiet == 0, np.nan, quiet)
    pause = gains[len(prompt) + RATE : len(prompt) + len(hiss)]
    assert np.nanmax(pause) - np.nanmin(pause) < 1e-3
    assert np.nanmax(gains) < 10 ** (7 / 20)


def test_silence_is_said_again_as_silence(speech: np.ndarray) -> None:
    noise = np.random.default_rng(0).normal(0, 0.05, 3 * RATE).astype(np.float32)
    assert not postfilter.chain(SPEECH, RATE, np.zeros(3 * RATE, np.float32), follow=True).whole(noise).any()
    gap = np.concatenate([speech[:RATE], np.zeros(2 * RATE, np.float32), speech[:RATE]])
    made = np.concatenate([noise, noise])[: len(gap)]
    heard = postfilter.chain(SPEECH, RATE, gap, follow=True).whole(made)
    assert not heard[round(1.6 * RATE) : round(2.9 * RATE)].any()  # the high-pass rings a while
    assert decibel(heard[:RATE]) > -40


@pytest.mark.parametrize("change", [-30, -10, 10])
def test_what_is_said_again_has_its_sources_level(speech: np.ndarray, change: float) -> None:
    source, made = (speech * np.float32(0.1)), (speech * np.float32(0.1 * 10 ** (change / 20)))
    heard = postfilter.chain(SPEECH, RATE, np.tile(source, 3), follow=True).whole(np.tile(made, 3))
    if change > -BOOST_MOST:
        assert abs(loudness(heard[len(source) :]) - loudness(source)) < 3
    else:
        assert loudness(heard[len(source) :]) < loudness(source)


BOOST_MOST = postfilter.BOOST + 1.5


def test_the_active_level_leaves_pauses_out(speech: np.ndarray) -> None:
    alone, paused = speech, np.concatenate([speech, np.zeros(5 * RATE, np.float32), speech])
    assert loudness(paused) == pytest.approx(loudness(alone), abs=0.5)
    assert loudness(tone(300, 2.0, 0.1)) == pytest.approx(-23, abs=0.3)
    assert active_level(powers(np.zeros(RATE, np.float32), RATE)) == 0


def test_what_is_silent(speech: np.ndarray) -> None:
    dither = np.random.default_rng(0).integers(-1, 2, RATE).astype(np.float32) / 32768
    for sound in (np.zeros(RATE, np.float32), dither, np.full(RATE, 0.3, np.float32), np.zeros(3, np.float32)):
        assert postfilter.silent(sound, RATE)
    for sound in (speech, 0.01 * speech, np.eye(1, RATE, 99, dtype=np.float32)[0]):
        assert not postfilter.silent(sound, RATE)


def test_each_filter_can_be_left_out(speech: np.ndarray) -> None:
    quieter = 0.25 * speech
    for corner in (0.0, 70.0):
        heard = postfilter.chain(OutputConfig(corner, 0.0), RATE, speech, 8000).whole(quieter)
        assert np.array_equal(heard, quieter) == (corner == 0)
        assert loudness(heard) == pytest.approx(loudness(quieter), abs=0.2)
    heard = postfilter.chain(OutputConfig(0.0, 1.5), RATE, speech, 8000).whole(np.tile(quieter, 3))
    assert loudness(heard) > loudness(quieter) + 3
