"""Whatever a prompt is: a clear line and exit code 1, or a sensible result; never a traceback, never a half output."""

import io
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiolm_cli.audio import files
from audiolm_cli.command_line import cli
from audiolm_cli.errors import InputError
from tests.helpers import ROOT
from tests.helpers.processes import spawn
from tests.helpers.sounds import FFMPEG_FORMATS, needs_ffmpeg, recorded_with_ffmpeg, tone


def wav(samples, rate=16000, subtype="FLOAT", format="WAV"):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, subtype, format=format)
    return buffer.getvalue()


def with_value(value):
    samples = tone(1.0)
    samples[8000] = value
    return samples


BAD = {
    "empty.wav": (b"", "the file is empty"),
    "text.wav": (b"hello, this is not audio\n" * 100, "not audio that libsndfile"),
    "header.wav": (wav(tone(1.0))[:20], "not audio that libsndfile"),
    "headeronly.wav": (wav(tone(1.0), subtype="PCM_16")[:44], "there is no audio in it"),
    "nothing.wav": (wav(tone(0)), "there is no audio in it"),
    "nan.wav": (wav(with_value(np.nan)), "has NaN or infinite samples"),
    "inf.wav": (wav(with_value(-np.inf)), "has NaN or infinite samples"),
    "huge.wav": (wav(tone(1.0).astype(np.float64) * 1e300, subtype="DOUBLE"), "has NaN or infinite samples"),
    "short.wav": (wav(tone(0.039)), "shorter than one token, 40 ms"),
    "one.wav": (wav(tone(1 / 16000)), "shorter than one token, 40 ms"),
    "slow.wav": (wav(tone(1.0), rate=10), "a sample rate of 10 Hz is outside"),
    "zeros.bin": (bytes(100_000), "not audio that libsndfile"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("existing", [False, True])
def test_bad_files(fake, tmp_path, monkeypatch, capfd, name, existing):
    monkeypatch.chdir(tmp_path)
    content, says = BAD[name]
    (tmp_path / name).write_bytes(content)
    if existing:
        (tmp_path / "out.wav").write_bytes(b"precious")
    code = cli.main(["continue", name, "-o", "out.wav", "-f", "--seed", "1"])
    out, err = capfd.readouterr()
    assert (code, out) == (1, "")
    line = err.splitlines()[-1]
    assert line.startswith(f"audiolm: error: {name}: {says}")
    assert len([line for line in err.splitlines() if "error" in line]) == 1
    assert sorted(os.listdir(tmp_path)) == sorted([name, "out.wav"] if existing else [name])
    assert not existing or (tmp_path / "out.wav").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("name", "says"), [("missing.wav", "no such file"), (".", "a directory"), ("", "no such file")]
)
def test_what_is_no_file(fake, tmp_path, monkeypatch, capfd, name, says):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["continue", "--seed", "1", "-o", "out.wav", name]) == 1
    assert says in capfd.readouterr().err
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(fake, prompt, capfd):
    prompt.chmod(0)
    assert cli.main(["continue", str(prompt), "--out-dir", str(prompt.parent / "o")]) == 1
    assert "Permission denied" in capfd.readouterr().err


@pytest.mark.parametrize("options", [{"stdin": subprocess.DEVNULL}, {"preexec_fn": lambda: os.close(0)}])
def test_an_empty_or_missing_stdin(tmp_path, options):
    process = spawn("continue", "-", "-o", tmp_path / "out.wav", "--seed", "1", stderr=subprocess.PIPE, **options)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines()[1].startswith(b"audiolm: error: standard input: ")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "format", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "W64", "RF64", "VOC", "WAVEX", "SVX", "MAT4"]
)
def test_a_truncated_file_is_used_as_far_as_it_goes(tmp_path, format, capfd):
    noise = (np.random.default_rng(0).standard_normal(5 * 16000) / 10).astype(np.float32)
    data = wav(noise, subtype=None, format=format)
    (tmp_path / "whole").write_bytes(data)
    assert files.read(tmp_path / "whole", 16000).notes == ()
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    recording = files.read(tmp_path / "cut", 16000)
    assert 1.0 < len(recording.samples) / 16000 < 3.0
    assert recording.notes == (f"the file is truncated: {len(recording.samples) / 16000:.2f} s of it are used",)
    assert capfd.readouterr().err == ""


def test_silence_can_be_continued(fake, tmp_path):
    soundfile.write(tmp_path / "zeros.wav", np.zeros(32000), 16000)
    assert cli.main(["continue", str(tmp_path / "zeros.wav"), "-o", str(tmp_path / "out.wav")]) == 0
    assert not soundfile.read(tmp_path / "out.wav")[0][:32000].any()


def write_silence(path, seconds, **options):
    with soundfile.SoundFile(path, "w", 16000, 1, "PCM_16", **options) as file:
        for _ in range(seconds):
            file.write(np.zeros(16000, np.int16))


@pytest.mark.parametrize("name", ["long.flac", "long.wav"])
def test_hours_of_silence_in_a_small_file_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(files, "MAX_SECONDS", 60)
    write_silence(tmp_path / name, 61)
    with pytest.raises(InputError, match=r"longer than 1 minutes; cut it first"):
        files.read(tmp_path / name, 16000)


@pytest.mark.parametrize("name", ["long.flac", "long.wav", "long.mp3"])
def test_of_hours_only_the_end_is_kept_where_no_more_is_needed(tmp_path, monkeypatch, name):
    monkeypatch.setattr(files, "MAX_SECONDS", 60)
    monkeypatch.setattr(files, "MAX_END_SECONDS", 180)
    with soundfile.SoundFile(tmp_path / name, "w", 16000, 1) as file:
        for second in range(100):
            file.write(tone(1.0) * (second / 100))
    recording = files.read(tmp_path / name, 16000, end_only=True)
    assert len(recording.samples) == 60 * 16000
    first, last = (np.abs(part).max() / np.abs(tone(1.0)).max() for part in np.split(recording.samples, 60)[::59])
    assert first == pytest.approx(0.4, abs=0.02)
    assert last == pytest.approx(0.99, abs=0.02)
    assert recording.notes == ("longer than 1 minutes: what comes before is left out",)
    monkeypatch.setattr(files, "MAX_END_SECONDS", 90)
    if name.endswith("wav"):  # where one can search no more is read than is kept
        assert np.array_equal(files.read(tmp_path / name, 16000, end_only=True).samples, recording.samples)
    else:
        with pytest.raises(InputError, match="longer than 1 minutes"):
            files.read(tmp_path / name, 16000, end_only=True)


def test_a_prompt_of_hours_can_be_continued_without_the_prompt(fake, tmp_path, monkeypatch, audiolm):
    monkeypatch.setattr(files, "MAX_SECONDS", 60)
    write_silence(tmp_path / "long.flac", 61)
    code, _, err = audiolm("continue", "long.flac", "-o", "out.wav", "--duration", "1")
    assert code == 1
    assert "--continuation-only" in err
    code, _, err = audiolm("continue", "long.flac", "-o", "out.wav", "--duration", "1", "--continuation-only")
    assert code == 0
    assert "long.flac: longer than 1 minutes: what comes before is left out" in err
    assert len(fake.calls[0]["prompts"][0].waveform) == 60 * 16000
    assert soundfile.info(tmp_path / "out.wav").frames == 16000


SEEDS = {
    format: wav(tone(0.3), subtype=None, format=format)
    for format in (
        "WAV",
        "FLAC",
        "OGG",
        "MP3",
        "AIFF",
        "AU",
        "CAF",
        "W64",
        "RF64",
        "VOC",
        "NIST",
        "WAVEX",
        "SVX",
        "MAT4",
    )
}


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_mutated_files_are_read_or_refused(tmp_path, no_ffmpeg, data):
    content = bytearray(SEEDS[data.draw(st.sampled_from(sorted(SEEDS)))])
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, min(len(content) - 1, 200)) | st.integers(0, len(content) - 1))
        content[place] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
    (tmp_path / "mutated").write_bytes(content)
    try:
        recording = files.read(tmp_path / "mutated", 16000)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert recording.samples.dtype == np.float32
        assert recording.samples.ndim == 1
        assert len(recording.samples) > 0
        assert np.abs(recording.samples).max() <= 1


def fuzz(seeds, folder, count, path):
    """Runs helpers/fuzz.py over the files in `seeds` with that PATH: how many were used, seconds of the slowest."""
    places = [folder / "work", folder / "temporary"]
    for place in places:
        place.mkdir()
    command = [sys.executable, "-m", "tests.helpers.fuzz", str(seeds), str(count)]
    environment = {**os.environ, "PATH": path, "TMPDIR": str(places[1]), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=places[0], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert sorted(os.listdir(places[0])) == ["messages"]
    assert os.listdir(places[1]) == []
    used, slowest = result.stdout.split()[-2:]
    return int(used), float(slowest)


@pytest.mark.slow
def test_two_thousand_damaged_files_take_neither_memory_nor_time(tmp_path):
    (tmp_path / "seeds").mkdir()
    for name, content in SEEDS.items():
        (tmp_path / "seeds" / name).write_bytes(content)
    used, slowest = fuzz(tmp_path / "seeds", tmp_path, 2000, path="")
    assert 500 < used < 1900
    assert slowest < 20


@needs_ffmpeg
@pytest.mark.slow
def test_damaged_files_of_what_ffmpeg_reads(tmp_path):
    """AUDIOLM_FUZZ=2000 in the environment takes so many of them, over some minutes."""
    count = int(os.environ.get("AUDIOLM_FUZZ", 64))
    (tmp_path / "seeds").mkdir()
    for suffix in FFMPEG_FORMATS:
        recorded_with_ffmpeg(tmp_path / "seeds", suffix, tone(0.3))
    used, slowest = fuzz(tmp_path / "seeds", tmp_path, count, path=os.environ["PATH"])
    print(f"{used} of {count} used, {slowest:.1f} s at most")
    assert 0.2 * count < used < 0.95 * count
    assert slowest < 35
