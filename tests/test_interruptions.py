"""A batch that is killed, again and again: what is there is whole, and what is missing comes out as it would have."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import spawn, tone

INPUTS, KILLS = 50, 20


def start(folder: Path, out: str, *more: str) -> subprocess.Popen:
    inputs = [f"in/{n}.wav" for n in range(INPUTS)]
    options = ("--out-dir", out, "--batch-size", "4", "--seed", "1", "-q", *more)
    environment = {**os.environ, "SLEEP": "0.02"}
    return spawn("continue", *inputs, *options, cwd=folder, env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_killed_batches_leave_whole_files_and_go_on(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n in range(INPUTS):
        soundfile.write(tmp_path / "in" / f"{n}.wav", tone(0.2 + n / 1000), 16000)
    begun = time.monotonic()
    assert start(tmp_path, "undisturbed").wait(60) == 0
    whole = time.monotonic() - begun
    random = np.random.default_rng(0)
    counts = []
    for _ in range(KILLS):
        process = start(tmp_path, "killed", "--skip-existing")
        time.sleep(random.uniform(0.3, 1.0) * whole)
        process.kill()
        process.wait(60)
        made = sorted((tmp_path / "killed").iterdir()) if (tmp_path / "killed").is_dir() else []
        for file in made:
            assert file.read_bytes() == (tmp_path / "undisturbed" / file.name).read_bytes()
        counts.append(len(made))
    assert counts == sorted(counts)
    assert counts[0] < INPUTS, "the first kill came too late to show anything"
    assert start(tmp_path, "killed", "--skip-existing").wait(60) == 0
    for folder in ("killed", "undisturbed"):
        assert sorted(os.listdir(tmp_path / folder)) == sorted(f"{n}.wav" for n in range(INPUTS))
    for file in (tmp_path / "undisturbed").iterdir():
        assert file.read_bytes() == (tmp_path / "killed" / file.name).read_bytes()


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
        env={**os.environ, "SLEEP": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out.decode().splitlines() == [f"{small_disk}/{name}.wav" for name in "ac"]
    message = f"audiolm: error: {small_disk}/b.wav: cannot be written: No space left on device"
    assert err.decode().splitlines() == ["audiolm: seed 1", message]
    assert sorted(os.listdir(small_disk)) == ["a.wav", "c.wav", "precious.wav"]
    assert [soundfile.info(small_disk / f"{name}.wav").duration for name in "ac"] == [2, 2]
