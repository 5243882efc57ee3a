"""The wheel alone, in an environment without the checkout and without a network, continues a recording."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from audiolm_cli.native import build
from tests.helpers import EXAMPLE, ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "weights/speech/config.json").is_file(), reason="there are no weights/speech yet"),
]

NO_NETWORK = """
import socket

def refuse(*_):
    raise OSError("the network was used")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.gethostbyname = refuse
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The `bin` folder of an environment with the wheel; what the program depends on comes from this one."""
    environment = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(pip, check=True, capture_output=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # its own .pth files do not count
    (packages / "no_network.py").write_text(NO_NETWORK)
    (packages / "no_network.pth").write_text("import no_network\n")  # a sitecustomize may be the system's own
    return environment / "bin"


def environment_without_the_checkout() -> dict[str, str]:
    hidden = ("PYTHONPATH", "HF_HUB_OFFLINE", "AUDIOLM_MODEL", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def run(command, folder) -> subprocess.CompletedProcess[str]:
    environment = environment_without_the_checkout()
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_the_wheel_carries_the_weights_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "audiolm_cli/weights/speech/config.json" in names
    assert "audiolm_cli/weights/speech/LICENSE" in names
    assert "audiolm_cli/py.typed" in names
    assert {name.split("/")[2] for name in names if name.startswith("audiolm_cli/weights/")} == {"speech", "piano"}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"audiolm_cli", "audiolm"}
    assert wheel.stat().st_size < 100e6  # the limit of the package index


@pytest.mark.skipif(not build.compiler(), reason="there is no C compiler here")
def test_the_wheel_carries_the_native_kernel(wheel, installed, tmp_path):
    names = zipfile.ZipFile(wheel).namelist()
    assert "audiolm_cli/native/plain.so" in names
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    said = run([installed / "audiolm", "--version"], tmp_path)
    assert "native kernel" in said.stdout, said


def test_without_a_compiler_the_wheel_is_for_all_platforms(tmp_path):
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "audiolm_cli", tmp_path / "audiolm_cli", ignore=shutil.ignore_patterns("*.so"))
    (tmp_path / "weights").mkdir()
    build_it = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", tmp_path]
    subprocess.run(build_it, check=True, capture_output=True, env={**os.environ, "CC": ""})
    (built,) = (tmp_path / "dist").glob("*.whl")
    assert built.name.endswith("-py3-none-any.whl")
    assert not any(name.endswith(".so") for name in zipfile.ZipFile(built).namelist())


def test_it_continues_a_recording_elsewhere_without_a_network(installed, tmp_path):
    shutil.copy(EXAMPLE, tmp_path / "prompt.flac")
    where = run([installed / "python", "-c", "import audiolm_cli; print(audiolm_cli.__file__)"], tmp_path)
    assert where.stdout.startswith(str(installed.parent)), where
    probe = run([installed / "python", "-c", "import socket; socket.create_connection(('127.0.0.1', 9))"], tmp_path)
    assert "the network was used" in probe.stderr

    command = [installed / "audiolm", "continue", "prompt.flac", "-o", "out.wav", "--duration", "2", "--seed", "1"]
    result = run([*command, "--threads", "1"], tmp_path)
    assert (result.returncode, result.stdout) == (0, "out.wav\n"), result.stderr
    prompt, _ = soundfile.read(EXAMPLE)
    with soundfile.SoundFile(tmp_path / "out.wav") as file:
        assert file.samplerate == 16000
        samples = file.read()
        assert file.software.startswith("audiolm ")
        comment = json.loads(file.comment)
    assert len(samples) == len(prompt) + 2 * 16000
    assert np.array_equal(samples[: len(prompt) - 320], prompt[:-320])  # all but the crossfade is the prompt's own
    assert comment["bundle"] == "speech"
    assert comment["seed"] == 1
    assert comment["prompt_samples"] == len(prompt)
    assert comment["digitalSourceType"] == "trainedAlgorithmicMedia"
    assert samples[len(prompt) :].std() > 1e-4
