"""What is named as an input: pipes, devices, sockets, odd names, files without end; unfinished and odd headers."""

import os
import socket
import struct
import subprocess
import threading
import time

import numpy as np
import pytest
import soundfile

from audiolm_cli.audio import files, inputs
from audiolm_cli.errors import InputError
from tests.helpers.processes import spawn
from tests.helpers.sounds import needs_ffmpeg, tone


def wav(data, *, rate=16000, channels=1, bits=16, kind=1, data_size=None, riff_size=None, before=b"", behind=b""):
    """A WAV file with these samples, by hand; sizes as given instead of right."""
    size = len(data) if data_size is None else data_size
    frame = channels * bits // 8
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, kind, channels, rate, rate * frame % 2**32, frame % 2**16, bits)
    body = b"WAVE" + before + fmt + struct.pack("<4sI", b"data", size) + data + behind
    return b"RIFF" + struct.pack("<I", len(body) if riff_size is None else riff_size) + body


PCM = (tone(5.0) * 32767).astype("<i2").tobytes()
LIST = b"LIST" + struct.pack("<I", 14) + b"INFOISFT" + struct.pack("<I", 2) + b"ab"


@pytest.fixture
def long_prompt(tmp_path):
    """A WAV file of more bytes than a pipe holds at once."""
    path = tmp_path / "long.wav"
    path.write_bytes(wav(PCM))
    return path


def through_a_pipe(path, content, pause=0.0):
    def write():
        with open(path, "wb") as pipe:
            for start in range(0, len(content), 50_000):
                pipe.write(content[start : start + 50_000])
                pipe.flush()
                time.sleep(pause)

    os.mkfifo(path)
    writer = threading.Thread(target=write)
    writer.start()
    return writer


@pytest.mark.parametrize("pause", [0, 0.05])
def test_a_pipe_is_read_to_its_end(tmp_path, long_prompt, pause):
    writer = through_a_pipe(tmp_path / "fifo", long_prompt.read_bytes(), pause)
    inputs.check(tmp_path / "fifo")
    recording = files.read(tmp_path / "fifo", 16000)
    writer.join()
    assert np.array_equal(recording.samples, files.read(long_prompt, 16000).samples)
    assert recording.notes == ()


def test_a_job_list_and_tokens_from_a_pipe_are_read_to_their_end(tmp_path):
    content = b"x" * 300_000
    writer = through_a_pipe(tmp_path / "fifo", content)
    assert inputs.read_bytes(tmp_path / "fifo") == content
    writer.join()


@pytest.mark.slow
def test_a_pipe_leaves_nothing_in_the_temporary_folder(tmp_path, long_prompt):
    (tmp_path / "temporary").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}

    def start(name):
        command = "continue", "-", "-o", tmp_path / name, "--seed", "1"
        return spawn(*command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)

    process = start("out.wav")
    process.communicate(long_prompt.read_bytes(), timeout=60)
    assert process.returncode == 0
    process = start("none.wav")
    assert process.stdin is not None
    process.stdin.write(long_prompt.read_bytes())  # and is still expected to go on
    time.sleep(1)
    process.kill()
    process.communicate()
    assert os.listdir(tmp_path / "temporary") == []


def test_a_pipe_that_cannot_be_kept_is_said(tmp_path, long_prompt, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inputs.tempfile, "TemporaryFile", full)
    writer = through_a_pipe(tmp_path / "fifo", long_prompt.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"fifo: cannot be kept in a temporary file: No space left .*TMPDIR"):
        files.read(tmp_path / "fifo", 16000)
    writer.join()


def test_a_pipe_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_BYTES", 2**20)
    process = subprocess.Popen(["yes"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        with pytest.raises(InputError, match="larger than 1 MB"):
            files.read(f"/dev/fd/{process.stdout.fileno()}", 16000)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/full", "/dev/null", "/dev/tty"])
def test_devices_are_refused_and_not_opened(name, audiolm):
    if not os.path.exists(name):
        pytest.skip("is not there")
    code, _, err = audiolm("continue", name, "--out-dir", "o", "--seed", "1")
    assert (code, err.splitlines()[-1]) == (1, f"audiolm: error: {name}: a device, not a recording")
    with pytest.raises(InputError, match="a device, not a recording"):
        files.read(name, 16000)


def test_standard_input_from_a_device_is_refused(tmp_path):
    with open("/dev/zero", "rb") as zeros:
        process = spawn("continue", "-", "-o", tmp_path / "out.wav", stdin=zeros, stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines()[-1] == b"audiolm: error: standard input: a device, not a recording"


def test_a_socket_is_refused(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        listener.bind("socket")
        with pytest.raises(InputError, match="socket: cannot be read: No such device or address"):
            files.read("socket", 16000)


@pytest.mark.parametrize(
    "name", ["two\nlines.wav", "\udcff\udc80.wav", "-n.wav", "a b;$(x).wav", "\33[2J.wav", "%d.wav"]
)
def test_odd_names_are_read_and_named_in_one_line(tmp_path, long_prompt, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as raised:
        inputs.check(name)
    assert str(raised.value).isprintable()
    os.rename(long_prompt, name)
    assert len(files.read(name, 16000).samples) == 80000


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5000, "no/such/folder/a.wav", ""])
def test_names_that_cannot_be(name):
    for read in (inputs.check, inputs.read_bytes, lambda name: files.read(name, 16000)):
        with pytest.raises(InputError) as raised:
            read(name)
        assert str(raised.value).isprintable()


def sparse(path, head, size):
    with open(path, "wb") as file:
        file.write(head)
        file.truncate(size)


def test_sparse_files_of_gigabytes_cost_nothing(tmp_path, no_ffmpeg, monkeypatch):
    monkeypatch.setattr(files, "MAX_SECONDS", 60)
    sparse(tmp_path / "zeros", b"", 2**36)
    with pytest.raises(InputError, match="not audio that libsndfile"):
        files.read(tmp_path / "zeros", 16000)
    sparse(tmp_path / "a.wav", wav(b"", data_size=2**32 - 1), 2**32)
    start = time.monotonic()
    with pytest.raises(InputError, match="longer than 1 minutes"):
        files.read(tmp_path / "a.wav", 16000)
    assert len(files.read(tmp_path / "a.wav", 16000, end_only=True).samples) == 60 * 16000
    assert time.monotonic() - start < 10


@needs_ffmpeg
def test_sparse_files_of_gigabytes_cost_ffmpeg_nothing(tmp_path):
    sparse(tmp_path / "zeros", b"", 2**36)
    with pytest.raises(InputError, match="not audio that libsndfile or ffmpeg can read"):
        files.read(tmp_path / "zeros", 16000)


@pytest.mark.parametrize("data_size", [None, 0, 0xFFFFFFFF])
def test_a_file_that_grows_while_it_is_read_ends_where_it_ended(tmp_path, data_size):
    path = tmp_path / "grows.wav"
    path.write_bytes(wav(PCM, data_size=data_size))
    done = threading.Event()

    def grow():
        with open(path, "ab") as file:
            while not done.is_set():
                file.write(PCM)

    growing = threading.Thread(target=grow)
    growing.start()
    try:
        assert len(files.read(path, 16000).samples) >= 80000
    except InputError as error:
        assert "longer than 60 minutes" in str(error)  # it grew faster than it was opened
    finally:
        done.set()
        growing.join()


@pytest.mark.parametrize(
    "sizes",
    [
        {"data_size": 0},
        {"data_size": 0, "riff_size": 0},
        {"data_size": 0, "riff_size": 36},
        {"data_size": 0, "riff_size": 8},
        {"data_size": 0, "before": LIST},
        {"data_size": 2048, "riff_size": 2048 + 36},  # of the first block, as Python's `wave` leaves it
    ],
)
def test_samples_behind_a_header_that_was_never_finished_are_used(tmp_path, sizes):
    (tmp_path / "a.wav").write_bytes(wav(PCM, **sizes))
    recording = files.read(tmp_path / "a.wav", 16000)
    assert np.array_equal(recording.samples, np.frombuffer(PCM, "<i2").astype(np.float32) / 32768)
    if sizes != {"data_size": 0, "riff_size": 8}:  # which libsndfile mends by itself
        assert recording.notes == ("the header was never finished: 5.00 s of it are used",)


def test_other_headers_that_were_never_finished(tmp_path):
    for format, place, size in (("AU", 8, 4), ("RF64", 28, 16)):
        soundfile.write(tmp_path / "a", tone(5.0), 16000, "PCM_16", format=format)
        data = bytearray((tmp_path / "a").read_bytes())
        data[place : place + size] = bytes(size)
        (tmp_path / "a").write_bytes(data)
        recording = files.read(tmp_path / "a", 16000)
        assert np.abs(recording.samples - tone(5.0)).max() < 1e-4
        assert recording.notes == ("the header was never finished: 5.00 s of it are used",)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000])
def test_a_length_that_means_to_the_end_is_no_fault(tmp_path, size):
    (tmp_path / "a.wav").write_bytes(wav(PCM, data_size=size))
    recording = files.read(tmp_path / "a.wav", 16000)
    assert (len(recording.samples), recording.notes) == (80000, ())


def test_what_else_stands_behind_the_samples_is_no_sound(tmp_path):
    for behind in (LIST, b"TAG" + bytes(125), bytes(3), LIST + b"id3 \4\0\0\0abcd"):
        (tmp_path / "a.wav").write_bytes(wav(PCM, behind=behind))
        recording = files.read(tmp_path / "a.wav", 16000)
        assert (len(recording.samples), recording.notes) == (80000, ())
    (tmp_path / "a.wav").write_bytes(wav(b"", behind=LIST))
    with pytest.raises(InputError, match="there is no audio in it"):
        files.read(tmp_path / "a.wav", 16000)


@pytest.mark.parametrize(
    "before", [LIST, b"JUNK" + struct.pack("<I", 1001) + bytes(1002), b"ID3\3\0\0\0\0\2\0" + bytes(256)]
)
def test_what_stands_before_the_samples_does_not_matter(tmp_path, before):
    data = before + wav(PCM) if before.startswith(b"ID3") else wav(PCM, before=before)
    (tmp_path / "a.wav").write_bytes(data)
    assert len(files.read(tmp_path / "a.wav", 16000).samples) == 80000


def test_an_id3_tag_before_flac(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(1.0), 16000)
    data = b"ID3\3\0\0\0\0\2\0" + bytes(256) + (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(data)
    assert len(files.read(tmp_path / "a.flac", 16000).samples) == 16000


@pytest.mark.parametrize("rate", [0, 1, 999, 1_000_001, 10_000_000, 2**31, 2**32 - 1])
def test_sample_rates_that_no_sound_has_are_refused(tmp_path, rate, no_ffmpeg):
    (tmp_path / "a.wav").write_bytes(wav(PCM, rate=rate))
    with pytest.raises(InputError, match=r"a sample rate of|not audio that libsndfile"):
        files.read(tmp_path / "a.wav", 16000)


@pytest.mark.parametrize("channels", [1000, 1024])
def test_a_thousand_channels(tmp_path, channels):
    (tmp_path / "a.wav").write_bytes(wav(bytes(channels * 2 * 1000), channels=channels))
    assert files.read(tmp_path / "a.wav", 16000).notes == (f"downmixed from {channels} channels",)


@pytest.mark.parametrize("channels", [0, 1025, 65535])
def test_more_channels_are_refused(tmp_path, channels):
    (tmp_path / "a.wav").write_bytes(wav(bytes(max(1, channels) * 2 * 100), channels=channels))
    with pytest.raises(InputError, match="not audio that libsndfile"):
        files.read(tmp_path / "a.wav", 16000)


def test_libraries_say_nothing_by_themselves(tmp_path, capfd):
    """libmpg123 does, of MP3 that is not whole, in whatever container."""
    soundfile.write(tmp_path / "a.mp3", tone(5.0), 16000)
    data = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(data[: len(data) // 2])
    (tmp_path / "b.wav").write_bytes(wav(data[: len(data) // 2], kind=0x55))
    for name in ("a.mp3", "b.wav"):
        try:
            files.read(tmp_path / name, 16000)
        except InputError as error:
            assert "b.wav" in str(error)
    assert capfd.readouterr().err == ""


def test_reading_works_with_stderr_closed(tmp_path, long_prompt):
    """Where the recording would otherwise be opened as descriptor 2, to which libraries write."""
    command = "continue", long_prompt, "-o", tmp_path / "out.wav", "--seed", "1"
    assert spawn(*command, preexec_fn=lambda: os.close(2)).wait(60) == 0


def test_waiting_for_a_pipe_can_be_interrupted(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    process = spawn("continue", tmp_path / "fifo", "-o", tmp_path / "out.wav", stderr=subprocess.PIPE)
    assert process.stderr is not None
    for _ in range(2):  # the seed is said, and then nothing happens
        if process.stderr.readline().startswith(b"audiolm: seed"):
            break
    time.sleep(1)
    process.send_signal(2)
    assert process.wait(60) == 130
