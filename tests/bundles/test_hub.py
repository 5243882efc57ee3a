"""Bundles from a hub: the real client against a hub of our own on 127.0.0.1."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save_file

from audiolm_cli.training.parts.assemble import write_sums
from tests.helpers import ROOT
from tests.helpers.bundles import write_bundle
from tests.helpers.hub import FakeHub, environment, serving
from tests.helpers.processes import forked

pytestmark = pytest.mark.slow


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    folder = write_bundle(tmp_path / "served", in_int8=True)  # of version 2; `weights/speech` below may be of 1
    card = "---\nlicense: cc-by-4.0\nfigures: none, it is random\n---\n# tiny\nA card \x1b[31mwith colour.\n"
    (folder / "README.md").write_text(card)
    (folder / "LICENSE").write_text("Attribution.\n")
    (folder / "example.ogg").write_bytes(b"a sound of the card")
    write_sums(folder)
    (folder / "weights.bin").write_bytes(b"what we never ask for")
    with serving({"org/tiny": folder}) as server:
        yield server


@pytest.fixture
def audiolm(hub: FakeHub, tmp_path: Path):
    """Runs a command line in a fork, where the client reads its environment again; a new process takes far longer."""
    given = environment(hub, tmp_path / "hf")

    def run(*arguments: object, new: bool = False, **more: str) -> subprocess.CompletedProcess[str]:
        if not new:
            return forked(*arguments, cwd=tmp_path, env={**given, **more}, forget="huggingface_hub")
        command = [sys.executable, "-m", "audiolm_cli", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True, timeout=120)

    return run


def test_a_bundle_is_fetched_once_and_then_used_without_the_network(audiolm, hub: FakeHub, prompt: Path) -> None:
    result = audiolm("models", "pull", "org/tiny@v1", new=True)
    assert result.returncode == 0, result.stderr
    folder = Path(result.stdout.strip())
    assert (folder / "coarse.safetensors").read_bytes() == (
        hub.repositories["org/tiny"] / "coarse.safetensors"
    ).read_bytes()
    assert not (folder / "weights.bin").exists()
    hub.requests.clear()
    assert audiolm("models", "pull", "org/tiny@v1").stdout == result.stdout
    made = audiolm("continue", prompt, "-o", "a.wav", "-m", "org/tiny@v1", "--duration", "0.2", "--device", "cpu")
    assert (made.returncode, made.stdout) == (0, "a.wav\n"), made.stderr
    assert hub.requests == []
    listed = [json.loads(line) for line in audiolm("models", "list", "--json").stdout.splitlines()]
    (entry,) = (record for record in listed if record["place"] == "cached")
    assert entry["name"] == "org/tiny@v1"
    assert (entry["licence"], entry["figures"]) == ("cc-by-4.0", "none, it is random")
    shown = audiolm("models", "show", "org/tiny@v1").stdout
    assert "A card [31mwith colour." in shown
    assert "Attribution." in shown
    assert "org/tiny@v1: whole" in audiolm("models", "verify").stdout
    assert hub.requests == []


def test_offline_means_no_request(audiolm, hub: FakeHub, prompt: Path) -> None:
    for arguments, more in ((["--offline"], {}), ([], {"HF_HUB_OFFLINE": "1"})):
        result = audiolm("models", "pull", "org/tiny", *arguments, **more)
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert "forbids to fetch it" in result.stderr
    result = audiolm("continue", prompt, "-o", "a.wav", "-m", "org/tiny", "--offline", "--seed", "1")
    assert result.returncode == 1
    assert "forbids to fetch it" in result.stderr
    assert hub.requests == []


def test_a_download_that_breaks_off_goes_on(audiolm, hub: FakeHub) -> None:
    """An embedded bundle: the client writes down pieces of 10 MB, and three quarters of this codec are more."""
    hub.repositories["org/tiny"], hub.cut, hub.cuts = ROOT / "weights" / "piano", "codec.safetensors", 1
    result = audiolm("models", "pull", "org/tiny")
    assert result.returncode == 0, result.stderr
    assert hub.ranges == ["codec.safetensors from 10485760"]


def test_what_has_come_is_not_fetched_again(audiolm, hub: FakeHub) -> None:
    hub.cut, hub.cuts = "coarse.safetensors", 1000
    result = audiolm("models", "pull", "org/tiny")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("audiolm: error: org/tiny: could not be fetched (")
    assert "Traceback" not in result.stderr
    hub.cuts = 0
    hub.requests.clear()
    assert audiolm("models", "pull", "org/tiny").returncode == 0
    assert [r.rpartition("/")[2] for r in hub.requests if r.startswith("GET /org/")] == ["coarse.safetensors"]


def test_a_wrong_byte_is_noticed_and_fetched_again(audiolm, hub: FakeHub) -> None:
    file = hub.repositories["org/tiny"] / "fine.safetensors"
    right = file.read_bytes()
    file.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    result = audiolm("models", "pull", "org/tiny")
    assert result.returncode == 1
    assert "fine.safetensors: missing, or not what SHA256SUMS says" in result.stderr
    assert audiolm("models", "verify", "org/tiny").returncode == 1
    file.write_bytes(right)
    assert audiolm("models", "pull", "org/tiny").returncode == 0
    assert audiolm("models", "verify", "org/tiny").returncode == 0


@pytest.mark.parametrize("harm", ["dimensions", "missing", "scales", "pickle", "header"])
def test_harmful_bundles_are_refused_in_one_line(audiolm, hub: FakeHub, prompt: Path, harm: str) -> None:
    config, file = hub.repositories["org/tiny"] / "config.json", hub.repositories["org/tiny"] / "coarse.safetensors"
    if harm == "dimensions":
        value = json.loads(config.read_text())
        value["coarse"].update(layers=96, width=16384, feedforward=65536)
        config.write_text(json.dumps(value))
    elif harm in ("missing", "scales"):
        tensors = load(file.read_bytes())
        if harm == "missing":
            del tensors["norm.weight"]
        else:
            tensors["ids.weight.scale"].fill_(torch.nan)
        save_file(tensors, file)
    elif harm == "pickle":
        torch.save(load(file.read_bytes()), file)
    else:
        header = json.dumps({"ids.weight": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    (hub.repositories["org/tiny"] / "weights.bin").unlink()
    write_sums(hub.repositories["org/tiny"])
    for command in (["models", "verify"], ["continue", prompt, "-o", "a.wav", "--seed", "1", "-m"]):
        audiolm("models", "pull", "org/tiny")
        result = audiolm(*command, "org/tiny")
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1].startswith("audiolm: error: ")
        assert "Traceback" not in result.stderr
        assert "config.json" in result.stderr or "coarse.safetensors" in result.stderr


def test_what_the_hub_does_not_have(audiolm, hub: FakeHub) -> None:
    for name, says in (("org/nothing", "no such repository"), ("org/tiny@v9", "no such revision")):
        result = audiolm("models", "pull", name)
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert says in result.stderr
    assert audiolm("models", "pull", "tiny").returncode == 2
    shutil.rmtree(hub.repositories["org/tiny"])


def test_a_folder_that_is_no_bundle_is_not_looked_for_on_the_hub(
    audiolm, hub: FakeHub, prompt: Path, tmp_path: Path
) -> None:
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    result = audiolm("continue", prompt, "-m", "org/tiny", "-o", "out.wav")
    assert (result.returncode, "no such bundle" in result.stderr, hub.requests) == (1, True, [])
