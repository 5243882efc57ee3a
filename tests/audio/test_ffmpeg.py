"""Formats that only ffmpeg knows; that it is called safely is tested with programs that stand in for it."""

import os
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from audiolm_cli.audio import ffmpeg, files
from audiolm_cli.errors import InputError
from tests.helpers.processes import spawn
from tests.helpers.sounds import FFMPEG_FORMATS, needs_ffmpeg, recorded_with_ffmpeg, tone

# The beginning of a WAV file as ffmpeg writes it into a pipe: 16 kHz, mono, float32.
HEADER = struct.pack(
    "<4sI8sIHHIIHH4sI", b"RIFF", 2**32 - 1, b"WAVEfmt ", 16, 3, 1, 16000, 64000, 4, 32, b"data", 2**32 - 1
)


@pytest.fixture
def unknown(tmp_path):
    """A file that libsndfile does not know."""
    path = tmp_path / "unknown.m4a"
    path.write_bytes(b"\0\0\0 ftypM4A " + bytes(1000))
    return path


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a Python program named ffmpeg first on the PATH; `write(bytes)` writes to its standard output."""

    def make(code):
        folder = tmp_path / "bin"
        folder.mkdir()
        start = f"#!{sys.executable}\nimport os, sys, time\ndef write(data): os.write(1, data)\nheader = {HEADER!r}\n"
        (folder / "ffmpeg").write_text(start + code)
        (folder / "ffmpeg").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    return make


@needs_ffmpeg
@pytest.mark.parametrize("suffix", FFMPEG_FORMATS)
def test_other_formats_are_read_whatever_their_names(tmp_path, suffix):
    path = recorded_with_ffmpeg(tmp_path, suffix, tone(1.0))
    if not path.exists():
        pytest.skip("this ffmpeg cannot write it")
    os.rename(path, tmp_path / "-a%d:\n\udcff")  # nothing of which means anything to a shell or to ffmpeg
    recording = files.read(tmp_path / "-a%d:\n\udcff", 16000)
    assert len(recording.samples) == pytest.approx(16000, abs=2500)  # codecs pad
    pitch = np.abs(np.fft.rfft(recording.samples[2000:14000])).argsort()[-40:] * 16000 / 12000
    assert {220, 331, 447} <= {wanted for wanted in (220, 331, 447) if np.abs(pitch - wanted).min() < 3}
    assert not [note for note in recording.notes if "damaged" in note]


@needs_ffmpeg
def test_other_formats_are_read_from_a_pipe_even_with_their_index_at_the_end(tmp_path):
    path = recorded_with_ffmpeg(tmp_path, "m4a", tone(1.0))
    assert path.read_bytes().index(b"moov") > path.read_bytes().index(b"mdat")
    with open(path, "rb") as file:
        process = spawn("continue", "-", "-o", tmp_path / "out.wav", "--seed", "1", stdin=file, env=os.environ)
        assert process.wait(60) == 0
    assert soundfile.info(tmp_path / "out.wav").frames == pytest.approx(32000, abs=2500)


@needs_ffmpeg
def test_tags_are_read(tmp_path):
    path = recorded_with_ffmpeg(tmp_path, "m4a", tone(1.0), "-metadata", "comment=made ☺", "-metadata", "artist=me")
    assert files.read(path, 16000).tags == {"comment": "made ☺", "artist": "me"}


@needs_ffmpeg
def test_a_truncated_file_of_another_format_is_used_and_noted(tmp_path):
    noise = (np.random.default_rng(0).standard_normal(5 * 16000) / 10).astype(np.float32)
    path = recorded_with_ffmpeg(tmp_path, "mka", noise)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    recording = files.read(path, 16000)
    assert 2.0 < len(recording.samples) / 16000 < 3.0
    assert recording.notes[-1].startswith("the file is damaged (")


@needs_ffmpeg
@pytest.mark.parametrize(
    "content",
    [
        "ffconcat version 1.0\nfile {0}\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{0}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n{0}\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
        "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static'><Period><AdaptationSet>"
        "<Representation id='1'><BaseURL>{0}</BaseURL></Representation></AdaptationSet></Period></MPD>",
        "[playlist]\nFile1={0}\n",
    ],
)
def test_nothing_that_names_other_files_is_followed(tmp_path, content):
    path = recorded_with_ffmpeg(tmp_path, "ts", tone(1.0))
    (tmp_path / "list").write_text(content.format(path))
    with pytest.raises(InputError, match="not audio that libsndfile or ffmpeg can read") as caught:
        files.read(tmp_path / "list", 16000)
    assert "asf" not in str(caught.value)  # no list of all that it knows


def test_without_ffmpeg_it_is_said_how_to_get_it(unknown, no_ffmpeg):
    with pytest.raises(InputError, match=r"unknown.m4a: not audio that libsndfile can read; ffmpeg .*apt install"):
        files.read(unknown, 16000)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("sys.exit('[mov,mp4 @ 0x55d0] moov atom\\33 not found\\nand more')", r"\(moov atom  not found\)"),
        ("sys.exit(3)", r"\(it ended with exit code 3\)"),
        ("os.kill(os.getpid(), 11)", r"\(it ended with exit code -11\)"),
        ("pass", r"\(no sound comes out\)"),
        ("write(header[:20])", r"\(no sound comes out\)"),
        ("write(header)", "there is no audio in it"),
        ("write(header[:22] + b'\\0\\0' + header[24:] + bytes(99))", r"\(no sound comes out\)"),
        ("write(header + b'\\0\\0\\xc0\\x7f')", "NaN"),
        ("while True: write(bytes(65536))", r"\(no sound comes out\)"),
        ("write(header[:36] + b'LIST\\xff\\xff\\xff\\x7f' + bytes(65536))", r"\(no sound comes out\)"),
        ("write(header)\nwhile True: write(bytes(65536))", "longer than 60 minutes"),
        ("while True: os.write(2, b'x' * 65536)", "takes too long"),
        ("while True: time.sleep(9)", "takes too long"),
        ("write(header + bytes(4000))\nwhile True: time.sleep(9)", "takes too long"),
        ("write(header)\nwhile True: write(bytes(4)); time.sleep(0.1)", "takes too long"),
        ("import subprocess; subprocess.run(['sleep', '99'])", "takes too long"),
    ],
)
def test_whatever_ffmpeg_does_ends_in_one_line(unknown, stand_in, monkeypatch, code, says):
    monkeypatch.setattr(ffmpeg, "SILENT_SECONDS", 3.0)
    monkeypatch.setattr(ffmpeg, "TOTAL_SECONDS", 6.0 if "sleep(0.1)" in code else 100.0)
    stand_in("open('pid', 'w').write(str(os.getpgid(0)))\n" + code)
    monkeypatch.chdir(unknown.parent)
    with pytest.raises(InputError, match=says) as raised:
        files.read(unknown, 16000)
    assert len(str(raised.value).splitlines()) == 1
    group = int((unknown.parent / "pid").read_text())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)  # until those who are killed have been reaped
    else:
        pytest.fail("processes are left behind")


def test_sound_that_comes_with_a_complaint_is_used_and_noted(unknown, stand_in):
    stand_in("os.write(2, b'file:/dev/fd/7: bad frame\\n'); write(header + bytes(4 * 8000) + b'xx'); sys.exit(1)")
    recording = files.read(unknown, 16000)
    assert len(recording.samples) == 8000
    assert recording.notes == ("the file is damaged (bad frame): 0.50 s of it are used",)


def test_ffmpeg_gets_the_open_file_and_no_terminal_and_no_network(unknown, stand_in, monkeypatch):
    stand_in("open('seen', 'w').write(repr((sys.argv, sys.stdin.read())))\nwrite(header + bytes(4000))")
    monkeypatch.chdir(unknown.parent)
    files.read(unknown, 16000)
    arguments, stdin = eval((unknown.parent / "seen").read_text())
    assert stdin == ""
    assert arguments[arguments.index("-i") + 1].startswith("file:/dev/fd/")
    assert arguments[arguments.index("-protocol_whitelist") + 1] == "file,pipe"
    listed = arguments[arguments.index("-format_whitelist") + 1].split(",")
    assert not {"concat", "hls", "dash", "sdp", "rtsp", "image2", "lavfi", "avisynth", "imf"} & set(listed)
    assert "unknown.m4a" not in str(arguments)


def test_what_is_no_program_is_said(unknown, stand_in):
    stand_in("")
    (unknown.parent / "bin" / "ffmpeg").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match="ffmpeg cannot be started: Exec format error"):
        files.read(unknown, 16000)


def test_an_interrupt_ends_ffmpeg(unknown, stand_in, monkeypatch):
    stand_in("write(header + bytes(4000)); time.sleep(60)")
    started = []

    def start(*arguments, real=subprocess.Popen, **options):
        started.append(real(*arguments, **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(np, "frombuffer", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        files.read(unknown, 16000)
    assert started[0].returncode == -9
