"""Outputs that are heard while they are made: to standard output, or through a loudspeaker (a stand-in for one)."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiolm_cli.audio import files
from audiolm_cli.audio.encoding import FORMATS, Encoder, wav_header
from audiolm_cli.command_line import cli
from audiolm_cli.provenance import watermark
from tests.helpers.processes import spawn
from tests.helpers.sounds import tone

TAGS = {"software": "audiolm", "comment": "{}"}


def encoded(samples: np.ndarray, format: str, length: float) -> bytes:
    written: list[bytes] = []
    encoder = Encoder(written.append, 16000, format, TAGS, length)
    for part in np.array_split(samples, 7):
        encoder.push(part)
    assert len(written) > 1 or format in ("flac", "ogg", "opus")
    encoder.finish()
    return b"".join(written)


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_written_piece_by_piece_can_be_read(format: str, tmp_path: Path) -> None:
    sound = tone(3.0)
    data = encoded(sound, format, float("inf"))
    if format == "s16le":
        assert np.array_equal(np.frombuffer(data, "<i2"), files.pcm16(sound))
        return
    file = tmp_path / f"a.{format}"
    file.write_bytes(data)
    recording = files.read(file, 16000)
    assert abs(len(recording.samples) - len(sound)) < (1000 if format == "opus" else 1)
    if format in ("wav", "flac"):
        assert np.array_equal(recording.samples, files.pcm16(sound) / np.float32(32768))
    assert recording.tags["comment"] == "{}"


def test_a_wav_stream_of_known_length_is_the_file() -> None:
    sound = tone(1.0)
    assert encoded(sound, "wav", len(sound)) == files.encode(sound, 16000, ".wav", TAGS)[0]
    endless = wav_header(16000, TAGS, float("inf"))
    assert endless[4:8] == endless[-4:] == b"\xff" * 4


def test_marks_do_not_depend_on_how_sound_comes() -> None:
    sound = 0.1 * np.random.default_rng(0).standard_normal(48000).astype(np.float32)
    whole = watermark.embed(sound, 16000, 5, 20000)
    for size in (48000, 7000, 333):
        marking = watermark.Marking(16000, 5, 20000, 20000)
        parts = [marking.push(sound[start : start + size]) for start in range(0, 48000, size)]
        assert np.array_equal(np.concatenate([*parts, marking.finish()]), whole[20000:])
    plain = watermark.Marking(16000, None, 20000, 100)
    assert np.array_equal(np.concatenate([plain.push(sound), plain.finish()]), sound[100:])


def test_standard_output_gets_the_files_bytes(fake: Any, prompt: Path, tmp_path: Path, capfdbinary: Any) -> None:
    options = ["--duration", "2", "--seed", "1", "-q"]
    assert cli.main(["continue", str(prompt), "-o", str(tmp_path / "a.wav"), *options]) == 0
    capfdbinary.readouterr()
    assert cli.main(["continue", str(prompt), "-o", "-", *options]) == 0
    assert capfdbinary.readouterr().out == (tmp_path / "a.wav").read_bytes()
    assert cli.main(["continue", str(prompt), "-o", "-", "--format", "flac", "--continuation-only", *options]) == 0
    samples, _ = soundfile.read(io.BytesIO(capfdbinary.readouterr().out))
    assert len(samples) == 2 * 16000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-o", "a.wav", "--format", "flac"], "--format: is of -o -"),
        (["-o", "-", "--format", "aiff"], "--format: must be wav, s16le"),
        (["-o", "a.wav", "--duration", "inf"], "--duration inf: only for -o - or --play"),
        (["-o", "-", "--duration", "inf", "--plot", "a.png"], "--duration inf: only"),
        (["-o", "a.wav", "--play"], "--play: plays one output and writes none"),
        (["--play", "--json"], "--play: leaves nothing to tell"),
        (["--play", "-n", "2"], "only one sample"),
    ],
)
def test_what_cannot_be_heard_is_refused(
    audiolm: Any, fake: Any, prompt: Path, monkeypatch: Any, options: Any, said: str
) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", loudspeaker([]))
    code, out, err = audiolm("continue", prompt, *options)
    assert (code, out) == (2, "")
    assert said in err
    assert fake.loads == []


class NoDevice(Exception):
    pass


def loudspeaker(heard: list[Any], device: bool = True, breaks: bool = False) -> Any:
    """A stand-in for sounddevice."""

    class OutputStream:
        def __init__(self, samplerate: int, channels: int, dtype: str):
            heard.append((samplerate, channels, dtype))

        def start(self) -> None:
            heard.append("start")

        def write(self, samples: np.ndarray) -> None:
            if breaks:
                raise NoDevice("unplugged")
            heard.append(samples)

        def stop(self) -> None:
            heard.append("stop")

        def close(self) -> None:
            heard.append("close")

    def query_devices(kind: str) -> None:
        if not device:
            raise NoDevice("Error querying device -1")

    module: Any = types.ModuleType("sounddevice")
    module.OutputStream, module.query_devices, module.PortAudioError = OutputStream, query_devices, NoDevice
    return module


def test_play_plays_the_output(audiolm: Any, fake: Any, prompt: Path, monkeypatch: Any) -> None:
    heard: list[Any] = []
    monkeypatch.setitem(sys.modules, "sounddevice", loudspeaker(heard))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, err = audiolm("continue", prompt, "--play", "--duration", 2, "--seed", 1, "--no-watermark")
    assert (code, out) == (0, "")
    assert "the loudspeaker: 2 s of new audio" in err
    assert (heard[:2], heard[-2:]) == ([(16000, 1, "float32"), "start"], ["stop", "close"])
    assert len(np.concatenate(heard[2:-2])) == 3 * 16000


def test_play_says_what_is_missing(audiolm: Any, fake: Any, prompt: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    code, _, err = audiolm("continue", prompt, "--play")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "pip install 'audiolm[play]'" in err
    monkeypatch.setitem(sys.modules, "sounddevice", loudspeaker([], device=False))
    code, _, err = audiolm("continue", prompt, "--play")
    assert (code, err) == (
        2,
        "audiolm: error: --play: there is no device to play through (Error querying device -1)\n",
    )
    assert fake.loads == []
    monkeypatch.setitem(sys.modules, "sounddevice", loudspeaker([], breaks=True))
    assert audiolm("continue", prompt, "--play", "--duration", 2, "-q") == (
        1,
        "",
        "audiolm: error: --play: unplugged\n",
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", ["pipe", "file"])
def test_without_end_until_ctrl_c(tiny_bundle: Path, tmp_path: Path, target: str) -> None:
    """What was written is a whole file, watermarked, and the command has done what it was asked for."""
    command = ("generate", "-m", tiny_bundle, "-o", "-", "--duration", "inf", "--seed", 1)
    with open(tmp_path / "file.wav", "wb") as file:
        out = subprocess.PIPE if target == "pipe" else file
        process = spawn(*command, code="pass", stdout=out, stderr=subprocess.PIPE)
        data = b""
        if target == "pipe":
            assert process.stdout is not None
            while len(data) < 2 * 16000 * 12:
                data += os.read(process.stdout.fileno(), 1 << 16)
        else:
            while os.path.getsize(file.name) < 2 * 16000 * 12:
                assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert b"s of new audio" in err
    if target == "pipe":
        (tmp_path / "file.wav").write_bytes(data + rest)
        assert data[4:8] == b"\xff" * 4
    else:
        assert soundfile.info(tmp_path / "file.wav").frames * 2 < os.path.getsize(tmp_path / "file.wav")
    recording = files.read(tmp_path / "file.wav", 16000)
    size = os.path.getsize(tmp_path / "file.wav")
    assert 12 * 16000 <= len(recording.samples) == (size - len(wav_header(16000, recording.tags, 0))) // 2
    assert '"duration":"inf"' in recording.tags["comment"]
