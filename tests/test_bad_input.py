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

from audiolm_cli import audio, cli
from audiolm_cli.errors import InputError
from tests.conftest import ROOT, spawn, tone


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
    "text.wav": (b"hello, this is not audio\n" * 100, "not audio that libsndfile can read"),
    "header.wav": (wav(tone(1.0))[:20], "not audio that libsndfile can read"),
    "headeronly.wav": (wav(tone(1.0), subtype="PCM_16")[:44], "there is no audio in it"),
    "nothing.wav": (wav(tone(0)), "there is no audio in it"),
    "nan.wav": (wav(with_value(np.nan)), "has NaN or infinite samples"),
    "inf.wav": (wav(with_value(-np.inf)), "has NaN or infinite samples"),
    "huge.wav": (wav(tone(1.0).astype(np.float64) * 1e300, subtype="DOUBLE"), "has NaN or infinite samples"),
    "short.wav": (wav(tone(0.039)), "shorter than one token, 40 ms"),
    "one.wav": (wav(tone(1 / 16000)), "shorter than one token, 40 ms"),
    "slow.wav": (wav(tone(1.0), rate=10), "a sample rate of 10 Hz is outside"),
    "zeros.bin": (bytes(100_000), "not audio that libsndfile can read"),
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
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err.splitlines()[1].startswith(b"audiolm: error: standard input: ")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "W64", "RF64"])
def test_a_truncated_file_is_used_as_far_as_it_goes(tmp_path, format, capfd):
    noise = (np.random.default_rng(0).standard_normal(5 * 16000) / 10).astype(np.float32)
    data = wav(noise, subtype=None, format=format)
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    recording = audio.read(tmp_path / "cut", 16000)
    assert 1.0 < len(recording.samples) / 16000 < 3.0
    if format in ("WAV", "FLAC", "AIFF", "AU"):  # of the others libsndfile does not say how long they should be
        assert len(recording.notes) == 1
        assert recording.notes[0].startswith("the file is truncated: 2.")
    assert capfd.readouterr().err == ""


def test_silence_can_be_continued(fake, tmp_path):
    soundfile.write(tmp_path / "zeros.wav", np.zeros(32000), 16000)
    assert cli.main(["continue", str(tmp_path / "zeros.wav"), "-o", str(tmp_path / "out.wav")]) == 0
    assert not soundfile.read(tmp_path / "out.wav")[0][:32000].any()


def test_hours_of_silence_in_a_small_file_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(audio, "MAX_SECONDS", 60)
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 16000, 1, "PCM_16") as file:
        for _ in range(61):
            file.write(np.zeros(16000, np.int16))
    assert (tmp_path / "long.flac").stat().st_size < 100_000
    with pytest.raises(InputError, match="longer than 1 minutes"):
        audio.read(tmp_path / "long.flac", 16000)


def test_an_endless_input_is_refused(monkeypatch):
    monkeypatch.setattr(audio, "MAX_BYTES", 2**20)
    with pytest.raises(InputError, match="larger than 1 MB"):
        audio.read("/dev/zero", 16000)


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


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_files_are_read_or_refused(tmp_path, data):
    content = bytearray(SEEDS[data.draw(st.sampled_from(sorted(SEEDS)))])
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, min(len(content) - 1, 200)) | st.integers(0, len(content) - 1))
        content[place] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
    (tmp_path / "mutated").write_bytes(content)
    try:
        recording = audio.read(tmp_path / "mutated", 16000)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert recording.samples.dtype == np.float32
        assert recording.samples.ndim == 1
        assert len(recording.samples) > 0
        assert np.abs(recording.samples).max() <= 1


# Reads damaged files with 2 GB of address space and 20 seconds for each; prints how many could be used.
FUZZ = """
import resource, signal, sys
resource.setrlimit(resource.RLIMIT_AS, (2 * 2**30,) * 2)
sys.path.insert(0, {root!r})
import numpy as np
from audiolm_cli import audio
from audiolm_cli.errors import InputError
from tests.test_bad_input import SEEDS
random, used = np.random.default_rng(0), 0
for n in range(2000):
    content = bytearray(SEEDS[sorted(SEEDS)[n % len(SEEDS)]])
    head = n % 3 and 100  # two in three are damaged where the header is
    for _ in range(random.integers(1, 9)):
        place = int(random.integers(min(head or len(content), len(content))))
        width = int(random.choice([1, 1, 2, 4]))
        content[place : place + width] = random.choice([bytes(width), b"\\xff" * width, random.bytes(width)])
    if n % 5 == 0:
        del content[int(random.integers(len(content))) :]
    with open("damaged", "wb") as file:
        file.write(content)
    signal.alarm(20)
    try:
        used += len(audio.read("damaged", 16000).samples) > 0
    except InputError as error:
        assert len(str(error).splitlines()) == 1, error
    signal.alarm(0)
print(used)
"""


@pytest.mark.slow
def test_two_thousand_damaged_files_take_neither_memory_nor_time(tmp_path):
    command = [sys.executable, "-c", FUZZ.format(root=str(ROOT))]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert 500 < int(result.stdout) < 1900


@pytest.mark.slow
def test_damaged_token_files_are_decoded_or_refused(tiny_bundle):
    from audiolm_cli import bundle, pipeline

    tiny, random = bundle.load(str(tiny_bundle)), np.random.default_rng(0)
    whole = pipeline.encode(tiny, tone(0.2)).save_bytes()
    used = 0
    for n in range(300):
        content = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            content[int(random.integers(8 if n % 4 == 0 else len(content)))] = int(random.integers(256))
        try:
            tokens = pipeline.Tokens.load_bytes(bytes(content), tiny)
        except InputError as error:
            assert len(str(error).splitlines()) == 1
        else:
            used += len(pipeline.decode(tiny, tokens)) >= 0
    assert 0 < used < 300
