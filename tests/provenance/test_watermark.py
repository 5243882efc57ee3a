"""The mark is quiet, is found in what was made and nowhere else, and survives handling."""

import numpy as np
import pytest
import soundfile

from audiolm_cli.audio import files
from audiolm_cli.provenance import watermark
from audiolm_cli.training.evaluation.watermark_robustness import bands_below
from tests.helpers import EXAMPLE
from tests.helpers.sounds import tone

RATE = watermark.RATE


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return files.read(EXAMPLE, RATE).samples


@pytest.mark.parametrize("bundle", [0, 1, 63])
def test_a_mark_is_found_with_its_bits(speech, bundle):
    (mark,) = watermark.find(watermark.embed(speech, RATE, bundle))
    assert mark.bundle == bundle
    assert mark.confidence > 3 * watermark.THRESHOLD
    assert mark.start == pytest.approx(0, abs=0.25)  # it begins quietly
    assert mark.end == pytest.approx(len(speech) / RATE, abs=0.1)


def test_recordings_have_none(speech):
    assert watermark.find(speech) == []
    assert watermark.score(speech) < watermark.THRESHOLD - 1


@pytest.mark.parametrize("sound", ["silence", "tone", "hiss", "clicks", "constant"])
def test_sounds_that_are_not_speech_have_none(sound):
    samples = {
        "silence": np.zeros(5 * RATE, np.float32),
        "tone": tone(5.0),
        "hiss": np.random.default_rng(0).normal(0, 0.1, 5 * RATE).astype(np.float32),
        "clicks": (np.arange(5 * RATE) % 1024 == 0).astype(np.float32),  # with the period of a tile
        "constant": np.full(5 * RATE, 0.5, np.float32),
    }[sound]
    assert watermark.find(samples) == []


@pytest.mark.parametrize("seconds", [0, 0.004, 0.05, 0.5])
def test_short_sound_is_marked_and_searched_without_complaint(speech, seconds):
    samples = speech[RATE : RATE + round(seconds * RATE)]
    marked = watermark.embed(samples, RATE, 1)
    assert marked.shape == samples.shape
    watermark.find(marked)


def test_silence_stays_silent():
    assert not watermark.embed(np.zeros(RATE, np.float32), RATE, 1).any()


def test_the_mark_lies_20_dB_below_the_sound_in_every_band(speech):
    assert bands_below(speech, watermark.embed(speech, RATE, 1)) >= 20


def test_nor_where_the_sound_is_silent_beside_what_is_loud():
    time = np.arange(4 * RATE) / RATE
    fading = 0.3 * np.exp(-4 * (time % 0.5)) * np.sin(2 * np.pi * 560 * time)  # the third below ends at 504 Hz
    sound = (fading + 1e-4 * np.random.default_rng(0).standard_normal(len(time))).astype(np.float32)
    assert bands_below(sound, watermark.embed(sound, RATE, 1)) > 18


def test_what_comes_before_is_untouched_and_the_mark_points_at_the_join(speech):
    begin = round(1.5 * RATE) + 7
    marked = watermark.embed(speech, RATE, 1, begin)
    assert np.array_equal(marked[:begin], speech[:begin])
    (mark,) = watermark.find(marked)
    assert mark.start == pytest.approx(begin / RATE, abs=0.1)


@pytest.mark.parametrize("seconds", [1.0, 1.5])
def test_a_short_mark_behind_a_recording_points_at_the_join(speech, seconds):
    """The two seconds that are searched are then mostly without a mark."""
    made = speech[RATE * 3 // 2 :][: round(seconds * RATE)]
    marked = watermark.embed(np.concatenate([speech, made]), RATE, 1, len(speech))
    (mark,) = watermark.find(marked)
    assert mark.start == pytest.approx(len(speech) / RATE, abs=0.1)
    assert mark.end == pytest.approx(len(marked) / RATE, abs=0.1)


def test_a_mark_does_not_make_loud_sound_clip(speech):
    loud = speech / np.abs(speech).max()
    marked = watermark.embed(loud, RATE, 1)
    assert np.abs(marked).max() <= 1
    assert [mark.bundle for mark in watermark.find(marked)] == [1]
    assert np.abs(watermark.embed(2 * loud, RATE, 1)).max() == 2  # only what it adds is kept from clipping


def test_marks_of_several_bundles_in_one_file_are_told_apart(speech):
    three = np.concatenate([watermark.embed(speech, RATE, 5), speech, watermark.embed(speech, RATE, 9)])
    found = watermark.find(three)
    assert [mark.bundle for mark in found] == [5, 9]
    assert found[0].end == pytest.approx(len(speech) / RATE, abs=0.2)
    assert found[1].start == pytest.approx(2 * len(speech) / RATE, abs=0.2)


def test_overlapping_marks_of_one_bundle_are_one():
    marks = [watermark.Mark(*mark) for mark in ((0, 3, 1, 8), (2, 5, 1, 9), (4, 6, 2, 8), (7, 9, 1, 8))]
    assert watermark._merged(marks) == [(0, 5, 1, 9), (4, 6, 2, 8), (7, 9, 1, 8)]


@pytest.mark.parametrize("begin", [0, 1000, 30000])
def test_a_stream_gets_the_same_samples_however_it_is_cut(speech, begin):
    whole, rng = watermark.embed(speech, RATE, 1, begin), np.random.default_rng(begin)
    embedder, made, given = watermark.Embedder(RATE, 1, speech[:begin]), [], begin
    for cut in [*np.sort(rng.integers(begin, len(speech), 20)), len(speech)]:
        made.append(embedder.push(speech[given:cut]))
        given = cut
        assert sum(map(len, made)) >= given - begin - watermark.LOOKAHEAD * RATE
    made.append(embedder.finish())
    assert np.array_equal(np.concatenate(made), whole[begin:])


def test_what_comes_before_says_how_loud_the_mark_may_be(speech):
    """In a pause behind words the mark is found from its first moment on."""
    pause = 0.01 * speech[: RATE // 2]
    marked = watermark.embed(np.concatenate([speech, pause, speech]), RATE, 1, len(speech))
    (mark,) = watermark.find(marked)
    assert mark.start == pytest.approx(len(speech) / RATE, abs=0.05)


@pytest.mark.parametrize("rate", [8000, 24000, 44100])
def test_bundles_of_other_rates_are_marked_too(rate):
    samples = files.read(EXAMPLE, rate).samples
    marked = watermark.embed(samples, rate, 3)
    (mark,) = watermark.find(files.resampled(marked, rate, RATE))
    assert mark.bundle == 3


@pytest.mark.parametrize(
    "handling",
    [
        lambda x: x[12345 : 12345 + 2 * RATE],
        lambda x: x * 0.1,
        lambda x: np.round(x * 128).astype(np.float32) / 128,
        lambda x: files.resampled(files.resampled(x, RATE, 8000), 8000, RATE),
        lambda x: files.resampled(files.resampled(x, RATE, 44100), 44100, RATE),
        lambda x: x + np.random.default_rng(0).normal(0, 0.07 * x.std(), len(x)).astype(np.float32),
    ],
    ids=["cut", "quieter", "8 bits", "8 kHz", "44.1 kHz", "noise"],
)
def test_a_mark_survives(speech, handling):
    (mark,) = watermark.find(handling(watermark.embed(speech, RATE, 6)))
    assert mark.bundle == 6


@pytest.mark.parametrize(("container", "subtype"), [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS")])
def test_a_mark_survives_lossy_formats(speech, tmp_path, container, subtype):
    soundfile.write(tmp_path / "a", watermark.embed(speech, RATE, 6), RATE, format=container, subtype=subtype)
    assert [mark.bundle for mark in watermark.find(files.read(tmp_path / "a", RATE).samples)] == [6]


def test_the_embedded_bundles_have_different_marks():
    assert watermark.bundle_id("speech") != watermark.bundle_id("piano")
    assert watermark.bits(watermark.bundle_id("speech")) == "01000001"
