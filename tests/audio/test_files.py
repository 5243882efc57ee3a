"""Reading and writing audio files; what is wrong with files is in test_bad_input.py."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from audiolm_cli.audio import files
from audiolm_cli.errors import OutputError, UsageError
from audiolm_cli.request import AUDIO
from tests.helpers.sounds import tone


def test_16_bit_audio_survives_reading_and_writing_exactly(tmp_path):
    whole = np.arange(-32768, 32768, dtype=np.int16)
    soundfile.write(tmp_path / "in.wav", whole, 16000)
    recording = files.read(tmp_path / "in.wav", 16000)
    assert recording.samples.dtype == np.float32
    assert recording.notes == ()
    for name in ("out.wav", "out.flac"):
        assert files.write(tmp_path / name, recording.samples, 16000, {}) == 0
        written, rate = soundfile.read(tmp_path / name, dtype="int16")
        assert rate == 16000
        assert np.array_equal(written, whole)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_resampling_keeps_what_both_rates_can_hold_and_nothing_else(rate):
    def tone_at(hertz, at):
        return (np.sin(2 * np.pi * hertz * np.arange(2 * at) / at) / 2).astype(np.float32)

    middle, least = slice(4000, -4000), min(rate, 16000)
    for hertz in (0.1 * least, 0.45 * least):
        error = files.resampled(tone_at(hertz, rate), rate, 16000) - tone_at(hertz, 16000)
        assert np.abs(error[middle]).max() < 0.001
    if rate > 16000:
        assert np.abs(files.resampled(tone_at(8300, rate), rate, 16000)[middle]).max() < 1e-5


@settings(max_examples=30)
@given(
    old=st.integers(1000, 200_000),
    lengths=st.lists(st.integers(0, 3000), min_size=1, max_size=6),
    new=st.sampled_from([16000, 24000]),
)
def test_resampling_does_not_depend_on_the_blocks(old, lengths, new):
    noise = np.random.default_rng(1).standard_normal(sum(lengths)).astype(np.float32) / 10
    pieces = list(files._resampled(np.split(noise, np.cumsum(lengths)[:-1]), old, new))
    whole = list(files._resampled([noise], old, new))
    assert abs(sum(map(len, pieces)) - len(noise) * new / old) <= 0.5
    if pieces:
        assert np.array_equal(np.concatenate(pieces), np.concatenate(whole))


@pytest.mark.parametrize("rate", [8000, 15999, 44100, 44101, 192_000])
def test_a_tone_stays_a_tone_at_any_rate(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(1.0, rate), rate, subtype="FLOAT")
    recording = files.read(tmp_path / "a.wav", 16000)
    assert recording.rate == 16000
    assert len(recording.samples) == 16000
    assert np.abs(recording.samples - tone(1.0))[200:-200].max() < 2e-3
    assert recording.notes == (f"resampled from {rate} to 16000 Hz",)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff", "a.au", "a.caf", "a.w64", "a.rf64"])
def test_any_format_is_read_whatever_its_name(tmp_path, name):
    suffix = name.rpartition(".")[2].upper()
    soundfile.write(tmp_path / name, tone(1.0), 16000, format=suffix)
    os.rename(tmp_path / name, tmp_path / "audio.raw")  # the name says nothing about the content
    recording = files.read(tmp_path / "audio.raw", 16000)
    assert recording.notes == ()
    assert len(recording.samples) == pytest.approx(16000, abs=2500)  # MP3 pads


@pytest.mark.parametrize("samples", [8192 + 5, 16384 + 50, 24576 + 100])
def test_opus_ends_as_it_was_written(tmp_path, samples):
    """Behind the last whole block, which a search for its place would garble."""
    sound = tone(2.0)[:samples]
    soundfile.write(tmp_path / "a.opus", sound, 16000, format="OGG", subtype="OPUS")
    whole, _ = soundfile.read(tmp_path / "a.opus", dtype="float32")
    assert np.array_equal(files.read(tmp_path / "a.opus", 16000).samples, whole)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_any_depth_and_number_of_channels(tmp_path, subtype, channels):
    scale = np.linspace(0.5, 1.5, channels) if channels > 1 else np.ones(1)
    soundfile.write(tmp_path / "a.wav", tone(0.5)[:, None] * scale, 16000, subtype=subtype)
    recording = files.read(tmp_path / "a.wav", 16000)
    assert np.abs(recording.samples - tone(0.5)).max() < 0.02
    assert recording.notes == ((f"downmixed from {channels} channels",) if channels > 1 else ())


@pytest.mark.parametrize("flipped", [-1.0, -0.9])
def test_channels_that_cancel_each_other_are_not_mixed(tmp_path, flipped):
    hum = np.sin(2 * np.pi * 50 * np.arange(16000) / 16000) / 4  # of both, as a balanced line picks it up
    pair = np.stack([tone(1.0) * flipped, tone(1.0)], axis=1) + hum[:, None]
    soundfile.write(tmp_path / "a.wav", pair, 16000, subtype="FLOAT")
    recording = files.read(tmp_path / "a.wav", 16000)
    assert np.abs(recording.samples - pair[:, 1]).max() < 1e-6 or flipped == -1.0
    assert np.abs(np.abs(recording.samples - hum) - np.abs(tone(1.0))).max() < 1e-6
    assert len(recording.notes) == 1
    assert recording.notes[0].startswith("its 2 channels cancel each other: the strongest, ")


@pytest.mark.parametrize("pair", [(1, 1), (1, 0), (0, 0), (1, -0.4), (1, 0, 0, 0, 0, 0, 0, 0)])
def test_other_channels_are_mixed(tmp_path, pair):
    soundfile.write(tmp_path / "a.wav", tone(1.0)[:, None] * np.array(pair), 16000, subtype="FLOAT")
    recording = files.read(tmp_path / "a.wav", 16000)
    assert recording.notes == (f"downmixed from {len(pair)} channels",)
    assert np.abs(recording.samples - tone(1.0) * np.mean(pair)).max() < 1e-6


def test_channels_of_independent_noise_are_mixed(tmp_path):
    noise = np.random.default_rng(0).standard_normal((16000, 6)) / 10
    soundfile.write(tmp_path / "a.wav", noise, 16000, subtype="FLOAT")
    assert files.read(tmp_path / "a.wav", 16000).notes == ("downmixed from 6 channels",)


def test_what_was_done_is_noted_once(tmp_path):
    loud = np.stack([tone(1.0, 44100) * 20] * 2, axis=1)
    soundfile.write(tmp_path / "a.wav", loud, 44100, subtype="FLOAT")
    recording = files.read(tmp_path / "a.wav", 16000)
    down, resampled, clipped = recording.notes
    assert down == "downmixed from 2 channels"
    assert resampled == "resampled from 44100 to 16000 Hz"
    assert clipped.endswith("samples beyond full scale clipped")
    assert np.abs(recording.samples).max() <= 1


@pytest.mark.slow
def test_reading_a_long_file_takes_little_memory_beyond_the_result(tmp_path):
    pytest.importorskip("resource")
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 48000, 2, "PCM_16") as file:
        for _ in range(600):
            file.write(np.zeros((48000, 2), np.int16))
    code = (
        "import sys, resource; from audiolm_cli.audio import files;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024; before = peak();"
        "print(len(files.read(sys.argv[1], 16000).samples), peak() - before)"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "long.flac"], capture_output=True, check=True
    ).stdout
    samples, memory = map(int, output.split())
    assert samples == 600 * 16000
    assert memory < 2 * 4 * samples + 64e6  # the pieces and the whole of them; the file itself unpacks to 230 MB


def test_the_formats_that_can_be_written_are_those_that_can_be_asked_for():
    assert tuple(files.FORMATS) == AUDIO


@pytest.mark.parametrize("suffix", AUDIO)
@pytest.mark.parametrize("samples", [640, 8000, 100_001])
def test_what_is_written_is_read_back_with_its_tags(tmp_path, suffix, samples):
    comment, sound = "x" * 999, np.tile(tone(1.0), 7)[:samples]
    files.write(tmp_path / f"a{suffix}", sound, 16000, {"software": "audiolm 9", "comment": comment})
    recording = files.read(tmp_path / f"a{suffix}", 16000)
    assert recording.tags.keys() == {"software", "comment"}
    assert recording.tags["software"].startswith("audiolm 9")
    assert recording.tags["comment"] == comment
    assert recording.notes == ()
    assert len(recording.samples) == samples
    assert np.abs(recording.samples - sound).mean() < 0.02  # in step: a sample off would be 0.04


def test_a_format_that_cannot_be_written_is_refused(monkeypatch):
    for suffix in AUDIO:
        files.check_format(suffix, 16000)
    with pytest.raises(UsageError, match=r"^\.opus: cannot have the bundle's rate, 22050 Hz"):
        files.check_format(".opus", 22050)
    monkeypatch.setattr("soundfile.check_format", lambda container, subtype: container != "MP3")  # before 1.1
    files.check_format(".opus", 16000)
    with pytest.raises(UsageError, match=r"^\.mp3: libsndfile \S+, which is installed here, cannot write it"):
        files.check_format(".mp3")


def test_an_mp3_of_few_bits_is_read_in_blocks_as_it_is_as_a_whole(tmp_path):
    soundfile.write(tmp_path / "a.mp3", np.tile(tone(1.0), 4), 16000)  # about 10 kbit/s
    whole, _ = soundfile.read(tmp_path / "a.mp3", dtype="float32")
    assert np.abs(files.read(tmp_path / "a.mp3", 16000).samples - whole).max() < 1e-5


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3"])
def test_writing_gives_the_same_bytes_every_time(suffix):
    assert files.encode(tone(1.0), 16000, suffix, {}) == files.encode(tone(1.0), 16000, suffix, {})


@pytest.mark.parametrize("suffix", [".ogg", ".mp3"])
def test_long_sound_can_be_written(suffix):
    data, _ = files.encode(np.tile(tone(1.0), 200), 16000, suffix, {})
    assert soundfile.info(io.BytesIO(data)).frames == 200 * 16000


def test_clipping_is_counted_and_nan_refused(tmp_path):
    samples = np.array([0.0, 1.0, -1.0, 1.5, -3.0], np.float32)
    assert files.write(tmp_path / "a.wav", samples, 16000, {}) == 2
    assert list(soundfile.read(tmp_path / "a.wav", dtype="int16")[0]) == [0, 32767, -32768, 32767, -32768]
    with pytest.raises(OutputError, match="NaN"):
        files.write(tmp_path / "b.wav", np.array([0, np.nan], np.float32), 16000, {})
    assert os.listdir(tmp_path) == ["a.wav"]


def test_a_recording_of_any_length_is_unpacked_into_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_SECONDS", 1)
    left = tone(3.0, 32000)
    soundfile.write(tmp_path / "long.wav", np.stack([left, -0.9 * left], 1), 32000)
    with open(tmp_path / "long.raw", "wb") as file:
        notes = files.unpack(tmp_path / "long.wav", 16000, file)
    samples = np.fromfile(tmp_path / "long.raw", np.int16) / 32768
    assert notes == (
        "its 2 channels cancel each other: the strongest, 1, is used",
        "resampled from 32000 to 16000 Hz",
    )
    assert np.abs(samples - files.resampled(left, 32000, 16000)).max() < 1e-3
