"""Programs that are interrupted, killed or out of disk: what is there is whole, the rest comes out as it would have."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.helpers.processes import forked, spawn
from tests.helpers.sounds import tone

INPUTS, KILLS = 50, 20


def start(folder: Path, out: str, *more: str) -> subprocess.Popen:
    inputs = [f"in/{n}.wav" for n in range(INPUTS)]
    options = ("--out-dir", out, "--batch-size", "4", "--seed", "1", "-q", *more)
    return spawn("continue", *inputs, *options, pause=0.02, cwd=folder, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_batches_leave_whole_files_and_go_on(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n in range(INPUTS):
        soundfile.write(tmp_path / "in" / f"{n}.wav", tone(0.2 + n / 1000), 16000)
    assert start(tmp_path, "undisturbed").wait(60) == 0
    killed = tmp_path / "killed"
    killed.mkdir()
    random = np.random.default_rng(0)
    counts = []
    for _ in range(KILLS):
        enough = len(os.listdir(killed)) + random.integers(4)
        process = start(tmp_path, "killed", "--skip-existing")
        while len(os.listdir(killed)) < enough and process.poll() is None:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.1))
        process.kill()
        process.wait(60)
        made = list(killed.glob("*.wav"))  # a kill between writing and renaming leaves a hidden file
        for file in made:
            assert file.read_bytes() == (tmp_path / "undisturbed" / file.name).read_bytes()
        counts.append(len(made))
    assert counts == sorted(counts)
    assert any(count < INPUTS for count in counts), "every kill came too late to show anything"
    assert start(tmp_path, "killed", "--skip-existing").wait(60) == 0
    for folder in ("killed", "undisturbed"):
        assert sorted(f.name for f in (tmp_path / folder).glob("*.wav")) == sorted(f"{n}.wav" for n in range(INPUTS))
    for file in (tmp_path / "undisturbed").iterdir():
        assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes()


# The real program, which interrupts itself in a stage as Ctrl-C would.
SELF_INTERRUPTING = """
import os, signal
from audiolm_cli import atomic, console
timed, write = console.Clock.timed, atomic._write_new
def begun(self, name):
    if name == os.environ["STAGE"]:
        signal.setitimer(signal.ITIMER_REAL, 0.002)
    return timed(self, name)
def written(*whole):
    if os.environ["STAGE"] == "write":
        os.kill(os.getpid(), signal.SIGINT)
    return write(*whole)
signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
console.Clock.timed, atomic._write_new = begun, written
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenize", "semantic", "coarse", "fine", "decode", "write"])
def test_an_interrupt_in_any_stage_leaves_all_as_it_was(tmp_path: Path, tiny_bundle: Path, stage: str) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0), 16000)
    (tmp_path / "out.wav").write_bytes(b"precious")
    command = ("continue", "a.wav", "-m", tiny_bundle, "-o", "out.wav", "-f", "--seed", "1")
    done = forked(*command, code=SELF_INTERRUPTING, cwd=tmp_path, env={**os.environ, "STAGE": stage})
    said = ["audiolm: seed 1", "audiolm: interrupted: 0 of 1 outputs are done"]
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (130, "", said)
    assert (tmp_path / "out.wav").read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["a.wav", "out.wav"]


# Not ru_maxrss, which begins with what the process that started this one held.
PEAK = """
import atexit, re
status = lambda: open("/proc/self/status").read()
atexit.register(lambda: print(re.search(r"VmHWM:\\s+(\\d+)", status())[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_length(tmp_path: Path, tiny_bundle: Path) -> None:
    """A second of audio takes what some copies of its samples take, not what the models hold for it."""
    peaks = []
    for seconds in (12, 60):
        process = spawn(
            *("generate", "--unconditional", "-m", tiny_bundle, "-o", f"{seconds}.wav", "--duration", seconds, "-q"),
            code=f"exec({PEAK!r})",
            cwd=tmp_path,
            stdout=subprocess.PIPE,
        )
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        peaks.append(int(out.splitlines()[-1]) / 1024)
    assert peaks[1] - peaks[0] < 48 * 1.1, peaks  # MB: 18 copies; decoding in one piece takes 1.7 MB a second even here


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 256 kB, where the tests may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_fails_what_does_not_fit_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    """Outputs of 2, 10 and 2 seconds, of which the second does not fit."""
    (small_disk / "precious.wav").write_bytes(b"precious")
    lengths = {"a": 1.0, "b": 9.0, "c": 1.0}
    for name, seconds in lengths.items():
        soundfile.write(tmp_path / f"{name}.wav", tone(seconds), 16000)
    process = spawn(
        *("continue", *(f"{name}.wav" for name in lengths), "--out-dir", small_disk, "--seed", "1", "-q"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out.decode().splitlines() == [f"{small_disk}/{name}.wav" for name in "ac"]
    message = f"audiolm: error: {small_disk}/b.wav: cannot be written: No space left on device"
    assert err.decode().splitlines() == [message]
    assert sorted(os.listdir(small_disk)) == ["a.wav", "c.wav", "precious.wav"]
    assert [soundfile.info(small_disk / f"{name}.wav").duration for name in "ac"] == [2, 2]


def test_a_folder_that_cannot_be_written_to(small_disk: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1.0), 16000)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    process = spawn("continue", "a.wav", "--out-dir", small_disk, cwd=tmp_path, stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=60)
    message = f"audiolm: error: {small_disk}/a.wav: the folder cannot be written to"
    assert (process.returncode, err.decode().splitlines()) == (1, [message])


def test_finished_outputs_stay_when_interrupted(audiolm, prompt, fake, tmp_path):
    fake.fail_at = 1
    command = ("continue", prompt, "-o", "a.wav", "--num-samples", "3", "--batch-size", "2")
    code, out, err = audiolm(*command)
    assert (code, out) == (130, "a.0.wav\na.1.wav\n")
    assert sorted(os.listdir(tmp_path)) == ["a.0.wav", "a.1.wav", "prompt.wav"]
    seed, *_, last = err.splitlines()
    rest = f"--skip-existing --{seed.removeprefix('audiolm: ')}"
    assert last == f"audiolm: interrupted: 2 of 3 outputs are done; the same command with {rest} makes the rest"
    fake.fail_at = None
    assert audiolm(*command, *rest.split())[:2] == (0, "a.2.wav\n")


def test_with_force_nothing_is_said_of_skipping(audiolm, prompt, fake):
    fake.fail_at = 0
    err = audiolm("continue", prompt, "-o", "a.wav", "-f")[2]
    assert err.splitlines()[-1] == "audiolm: interrupted: 0 of 1 outputs are done"


def test_an_interrupt_that_compiled_code_turned_into_an_error(audiolm, prompt, fake, monkeypatch):
    def load(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None

    monkeypatch.setattr(sys.modules["audiolm_cli.bundles.bundle"], "load", load)
    code, out, err = audiolm("continue", prompt, "-o", "out.wav", "--seed", "1")
    assert (code, out) == (130, "")
    assert err.startswith("audiolm: seed 1\naudiolm: interrupted: 0 of 1 outputs are done")
    monkeypatch.setattr(sys.modules["audiolm_cli.bundles.bundle"], "load", fake.load)
    fake.fail_at, fake.error = 0, ZeroDivisionError("x")
    assert audiolm("continue", prompt, "-o", "out.wav")[0] == 1  # another run's interrupt does not count


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_program_quietly(prompt, tmp_path, sent, code):
    process = spawn(
        *("continue", prompt, "-o", tmp_path / "a.wav", "--num-samples", "2", "--batch-size", "1", "-q", "--seed", "1"),
        pause=60,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == bytes(tmp_path / "a.0.wav")
    time.sleep(0.1)
    process.send_signal(sent)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert err == b""
    assert sorted(os.listdir(tmp_path)) == ["a.0.wav", "prompt.wav"]
