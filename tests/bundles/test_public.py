"""Public checkpoints from a hub: the real client against a hub of our own, with twins in the shape of the real ones."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.hub import COMMIT, FakeHub, environment, serving
from tests.helpers.processes import forked
from tests.helpers.twins import write_llama_mimi, write_mimi, write_soda

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
SODA, LLAMA_MIMI, MIMI = "soda-research/soda-135m-base", "llm-jp/Llama-Mimi-1.3B", "kyutai/mimi"
GATED = "meta-llama/gated"
TOKENIZER = "soda-research/marin-mimi-bpe-8cb-16k-tokenizer"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    served = {
        SODA: write_soda(tmp_path / "soda", max_position_embeddings=242),
        LLAMA_MIMI: write_llama_mimi(tmp_path / "llama-mimi", max_position_embeddings=122),
        MIMI: write_mimi(tmp_path / "mimi"),
        TOKENIZER: tmp_path / "tokenizer",
    }
    served[TOKENIZER].mkdir()
    (served[SODA] / "README.md").write_text("---\nlicense: apache-2.0\n---\n# soda\n")
    for name in ("pytorch_model.bin", "modeling_soda.py", "optimizer.pt"):
        (served[SODA] / name).write_bytes(b"what we never ask for")
    with serving(served, (GATED,)) as server:
        yield server


@pytest.fixture
def audiolm(hub: FakeHub, tmp_path: Path) -> Run:
    """Runs a command line in a fork, where the client reads its environment again."""
    import transformers  # noqa: F401  (before the fork)

    given = environment(hub, tmp_path / "hf")
    return lambda *arguments: forked(*arguments, cwd=tmp_path, env=given, forget="huggingface_hub")


def generate(name: str, *more: object) -> tuple[object, ...]:
    return ("generate", "-o", "a.wav", "-m", name, "--duration", "0.2", "--seed", "1", "--device", "cpu", *more)


@pytest.mark.parametrize("name", [SODA, f"{LLAMA_MIMI}@v1"])
def test_only_what_is_needed_is_fetched_and_then_used_without_the_network(
    audiolm: Run, hub: FakeHub, name: str, tmp_path: Path
):
    result = audiolm(*generate(name, "--json", "-q"))
    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    assert (record["model"], record["revision"]) == (name.partition("@")[0], COMMIT)
    comment = json.loads(soundfile.SoundFile(tmp_path / "a.wav").copy_metadata()["comment"])
    assert comment["options"]["revision"] == COMMIT
    asked = {request.partition("?")[0].rpartition("/")[2] for request in hub.requests if "/resolve/" in request}
    assert asked <= {
        "config.json",
        "tokenizer.json",
        "README.md",
        "model.safetensors.index.json",
        "model.safetensors",
    } | {file.name for file in hub.repositories[LLAMA_MIMI].glob("model-*.safetensors")}
    hub.requests.clear()
    assert audiolm(*generate(name, "--force", "--offline")).returncode == 0
    assert hub.requests == []
    listed = [json.loads(line) for line in audiolm("models", "list", "--json").stdout.splitlines()]
    names = [record["name"] for record in listed if record["place"] == "cached"]
    assert names == [name if "@" in name else f"{name}@main"]
    assert audiolm("models", "verify", name).stdout == f"{name}: whole\n"
    shown = audiolm("models", "show", name)
    assert "one language model over Mimi's codes" in shown.stdout, shown.stderr
    assert hub.requests == []


def test_a_command_that_it_cannot_serve_costs_no_download_of_weights(audiolm: Run, hub: FakeHub, prompt: Path):
    result = audiolm("encode", prompt, "-o", "a.safetensors", "-m", SODA)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert not [request for request in hub.requests if "model.safetensors" in request.rpartition("/")[2][:17]]


def test_a_vocabulary_that_stands_in_a_repository_of_its_own(audiolm: Run, hub: FakeHub):
    (hub.repositories[SODA] / "tokenizer.json").rename(hub.repositories[TOKENIZER] / "tokenizer.json")
    assert audiolm(*generate(SODA)).returncode == 0
    (hub.repositories[LLAMA_MIMI] / "tokenizer.json").unlink()
    result = audiolm(*generate(LLAMA_MIMI, "--force", "-q"))
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "has no tokenizer.json" in result.stderr


def test_a_gated_repository_says_how_to_log_in(audiolm: Run):
    result = audiolm(*generate(GATED, "-q"))
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "`hf auth login`" in result.stderr


def test_offline_means_no_request(audiolm: Run, hub: FakeHub):
    result = audiolm(*generate(SODA, "--offline", "-q"))
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "forbids to fetch it" in result.stderr
    assert hub.requests == []


def test_what_is_damaged_later_is_noticed(audiolm: Run, tmp_path: Path):
    assert audiolm(*generate(SODA)).returncode == 0
    (weights,) = [file for file in (tmp_path / "hf").rglob("model.safetensors") if "soda" in str(file)]
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.resolve().write_bytes(data)
    result = audiolm("models", "verify", SODA)
    assert result.returncode == 1
    assert "model.safetensors: not what the hub has" in result.stderr


@pytest.mark.parametrize("harm", ["kind", "sizes", "shape", "missing", "pickle", "header", "index", "code", "ids"])
def test_hostile_checkpoints_are_refused_in_one_line(audiolm: Run, hub: FakeHub, harm: str, tmp_path: Path):
    folder = hub.repositories[LLAMA_MIMI if harm == "index" else SODA]
    config, weights = json.loads((folder / "config.json").read_text()), folder / "model.safetensors"
    if harm == "kind":
        config["model_type"] = "mistral\x1b[31m"
    elif harm == "sizes":
        config.update(hidden_size=16384, num_hidden_layers=128, intermediate_size=65536)
    elif harm == "shape":
        config["hidden_size"] = 64
    elif harm == "code":
        config["auto_map"] = {"AutoModelForCausalLM": "modeling_soda.Model"}
    elif harm == "missing":
        tensors = load_file(weights)
        del tensors["model.norm.weight"]
        save_file(tensors, weights)
    elif harm == "pickle":
        torch.save({}, weights)
    elif harm == "header":
        header = json.dumps({"model.norm.weight": {"dtype": "F32", "shape": [10**9] * 2, "data_offsets": [0, 4]}})
        weights.write_bytes(len(header).to_bytes(8, "little") + header.encode() + b"\0" * 4)
    elif harm == "index":
        index = {"weight_map": {"model.norm.weight": "../../../../../../etc/passwd"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        value = json.loads((folder / "tokenizer.json").read_text())
        value["added_tokens"][-1]["id"] = 10**9
        (folder / "tokenizer.json").write_text(json.dumps(value))
    (folder / "config.json").write_text(json.dumps(config))
    result = audiolm(*generate(LLAMA_MIMI if harm == "index" else SODA, "-q"))
    assert (result.returncode, result.stderr.count("\n")) == (1, 1), result.stderr
    assert result.stderr.startswith("audiolm: error: ")
    assert result.stderr.isascii()
    assert "\x1b" not in result.stderr
    assert not (tmp_path / "a.wav").exists()
