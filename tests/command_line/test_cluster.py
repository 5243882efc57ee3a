"""`--ray`: the same list on a cluster of two workers that the tests start and stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from audiolm_cli.command_line.arguments import RAY_ADDRESS, SamplingRunOptions
from audiolm_cli.command_line.batch import load_runner
from audiolm_cli.command_line.cli import main
from audiolm_cli.command_line.cluster import Worker
from audiolm_cli.console import Console
from audiolm_cli.request import ContinueRequest
from tests.helpers import ROOT
from tests.helpers.sounds import tone

ray = pytest.importorskip("ray")

BATCHES, BATCH = 6, 2

# a cluster of its own, whatever else runs on this machine, until its standard input ends
CLUSTER = """
import ray, sys
ray.init("local", num_cpus=2, num_gpus=0, include_dashboard=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a cluster with room for two workers, and the environment of commands that use it."""
    home = tmp_path_factory.mktemp("home")  # where Ray keeps a token
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0", "HOME": str(home)}
    pipes: dict = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen([sys.executable, "-c", CLUSTER], env=environment, **pipes)
    assert process.stdout is not None
    yield process.stdout.readline().strip(), environment
    process.communicate(timeout=60)


def audiolm(*arguments: object, cwd: Path, env: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, "-c", "import sys; from audiolm_cli.command_line.cli import main; sys.exit(main())"]
    pipes: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*command, *map(str, arguments)], cwd=cwd, env=env, **pipes)


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    """Recordings of different lengths, with one that is none among them."""
    names = [f"{n}.wav" for n in range(BATCHES * BATCH)]
    for n, name in enumerate(names):
        soundfile.write(tmp_path / name, tone(0.3 + n / 50), 16000)
    (tmp_path / "3.wav").write_text("not audio")
    return names


def workers() -> list[int]:
    """The processes that hold a `Worker`; a child of one has its name until it runs another program."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"MapWorker" in (folder / "cmdline").read_bytes():
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            pass  # gone by now
    return [number for number, parent in parents.items() if parent not in parents]


@pytest.mark.slow
def test_a_cluster_makes_what_this_machine_makes_even_if_a_worker_dies(tmp_path, cluster, inputs, tiny_bundle):
    options = ("continue", *inputs, "-m", tiny_bundle, "--seed", 5, "--duration", 4, "--batch-size", BATCH, "--json")
    address, environment = cluster
    here = audiolm(*options, "--out-dir", "out", cwd=tmp_path, env=environment)
    wanted, said = here.communicate(timeout=120)
    assert here.returncode == 1
    (tmp_path / "out").rename(tmp_path / "here")

    process = audiolm(*options, "--out-dir", "out", "--ray", address, cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 120
    while not (made := list((tmp_path / "out").glob("*.wav"))) and time.monotonic() < deadline:
        time.sleep(0.01)
    kept = {file: file.stat().st_ino for file in made}
    running = workers()
    assert len(running) == 2
    os.kill(running[0], signal.SIGKILL)
    got, told = process.communicate(timeout=180)
    assert process.returncode == 1
    assert sorted(os.listdir(tmp_path / "out")) == sorted(os.listdir(tmp_path / "here"))
    for file in (tmp_path / "here").iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert all(file.stat().st_ino == inode for file, inode in kept.items()), "made a second time"

    def lasting(lines: str) -> list[dict]:
        changing = ("stages", "real_time_factor", "batch")
        return [{k: v for k, v in json.loads(line).items() if k not in changing} for line in lines.splitlines()]

    assert lasting(got) == lasting(wanted)
    errors = [line for line in told.splitlines() if "error" in line]
    assert errors == [line for line in said.splitlines() if "error" in line]
    assert [line.split(": ")[2] for line in errors] == ["3.wav"]
    assert all(line.startswith("audiolm: ") for line in told.splitlines()), told


def test_a_worker_that_decodes_in_another_way_is_refused(tiny_bundle, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUDIOLM_KERNEL", "torch")
    running = SamplingRunOptions(model=str(tiny_bundle), device="cpu", offline=True)
    identity = load_runner(ContinueRequest, running, Console()).bundle.identity
    failure = Worker(ContinueRequest, running, identity, "native", ".", None).failure
    assert "decodes by torch, others by native" in failure
    assert not Worker(ContinueRequest, running, identity, "torch", ".", None).failure


@pytest.mark.slow
def test_more_cores_than_there_are(tmp_path, cluster, inputs, tiny_bundle):
    address, environment = cluster
    options = ("encode", "0.wav", "-m", tiny_bundle, "-o", "a.safetensors", "--threads", 3, "--ray", address)
    process = audiolm(*options, cwd=tmp_path, env=environment)
    told = process.communicate(timeout=120)[1]
    assert (process.returncode, told) == (2, "audiolm: error: --ray: no machine has the 3 CPU that a worker needs\n")


@pytest.mark.slow
def test_no_cluster_there(tmp_path, inputs):
    process = audiolm("continue", "0.wav", "-o", "a.wav", "--ray", "127.0.0.1:9", cwd=tmp_path, env=dict(os.environ))
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 2
    assert "--ray: no cluster to be had at 127.0.0.1:9" in told.splitlines()[-1]


def test_the_address_may_be_left_out():
    for address in ("auto", "local", "ray://head:10001", "10.0.0.7:6379", "head-node.example:6379"):
        assert RAY_ADDRESS.fullmatch(address)
    for name in ("a.wav", "-q", "-", "C:folder", "prompt"):
        assert not RAY_ADDRESS.fullmatch(name)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--ray=a.wav", "a.wav", "-o", "b.wav"], "--ray: an address is"),
        (["--ray", "-", "-o", "b.wav"], "standard input and output"),
        (["--ray", "a.wav", "-o", "-"], "standard input and output"),
        (["a.wav", "-o", "b.wav", "--ray", "--device", "cuda:1"], "give cuda alone"),
        (["--ray", "auto", "-o", "b.wav"], "name the inputs"),
        (["--ray", "-q", "-o", "b.wav"], "name the inputs"),
    ],
)
def test_what_cannot_be(arguments, says, capfd):
    assert main(["continue", *arguments]) == 2
    assert says in capfd.readouterr().err
