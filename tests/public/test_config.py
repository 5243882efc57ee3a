"""What a public checkpoint says of itself is read as its makers meant it, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from audiolm_cli.errors import ModelError
from audiolm_cli.mimi.decoder import rope_frequencies
from audiolm_cli.public import files
from audiolm_cli.public.config import RopeScaling, read_config
from audiolm_cli.public.layout import FAMILIES, read_layout

SODA, LLAMA_MIMI = FAMILIES
LLAMA: dict[str, Any] = {  # as Llama 3.2 1B has it, in the form of transformers 4
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "num_quantizers": 4,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 136450,
}


def written(folder: Path, value: Any, name: str = "config.json") -> Path:
    (folder / name).write_text(json.dumps(value))
    return folder


def test_a_config_of_either_form_says_the_same(tmp_path: Path):
    old = read_config(written(tmp_path, LLAMA))
    new = {name: value for name, value in LLAMA.items() if not name.startswith("rope")}
    new["rope_parameters"] = {**LLAMA["rope_scaling"], "rope_theta": LLAMA["rope_theta"]}
    assert read_config(written(tmp_path, new)) == old
    assert (old.head_width, old.kv_heads, old.rope_theta, old.num_quantizers) == (64, 8, 500000.0, 4)
    assert old.rope == RopeScaling(32.0, 1.0, 4.0, 8192)
    assert old.parameters == 16 * (2048 * 64 * (2 * 32 + 2 * 8) + 3 * 2048 * 8192)


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        ({"hidden_size": 10**9}, "hidden_size must be between 8 and 16384"),
        ({"hidden_size": "2048"}, "hidden_size must be int"),
        ({"num_hidden_layers": 128, "hidden_size": 16384, "intermediate_size": 65536}, "larger than any model"),
        ({"num_attention_heads": 0}, "num_attention_heads must be between"),
        ({"num_key_value_heads": 5}, "must be a multiple of num_key_value_heads"),
        ({"head_dim": 63}, "head_dim must be even"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is none that is built here"),
        ({"attention_bias": True}, "attention_bias 'True' is none"),
        ({"use_sliding_window": True}, "use_sliding_window 'True' is none"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "auto_map"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn' is none"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 32.0}}, "rope.* is missing"),
        ({"rope_scaling": {**LLAMA["rope_scaling"], "low_freq_factor": 8.0}}, "must exceed"),
        ({"rope_scaling": 7}, "rope_scaling must be an object"),
        ({"rms_norm_eps": None}, "rms_norm_eps must be float"),
        ({"num_quantizers": 64}, "num_quantizers must be between"),
    ],
)
def test_what_is_not_built_here_is_refused_by_name(tmp_path: Path, harm: dict[str, Any], says: str):
    with pytest.raises(ModelError, match=says) as caught:
        read_config(written(tmp_path, {**LLAMA, **harm}))
    assert str(caught.value).startswith(f"{tmp_path}: config.json: ")


@pytest.mark.parametrize("missing", ["vocab_size", "num_attention_heads", "max_position_embeddings"])
def test_what_is_missing_is_named(tmp_path: Path, missing: str):
    with pytest.raises(ModelError, match=f"{missing} is missing"):
        read_config(written(tmp_path, {name: value for name, value in LLAMA.items() if name != missing}))


def test_the_kind_is_that_of_the_config(tmp_path: Path):
    assert files.kind(written(tmp_path, LLAMA)) == "mimi"
    assert files.kind(written(tmp_path, {"name": "tiny"})) == "stages"
    for other in ("mistral", 7, ["llama"], "\x1b[31m"):
        with pytest.raises(ModelError, match="is none that this program knows") as caught:
            files.kind(written(tmp_path, {"model_type": other}))
        assert str(caught.value).isprintable()


def soda(quantizers: int = 2) -> dict[str, int]:
    """SODA's vocabulary in its own places, of fewer quantizers."""
    codes = {chr(0xE000 + n): 128260 + n for n in range(2048 * quantizers)}
    return {"<|begin_of_text|>": 128000, "<|audio_start|>": 128258, "<|audio_end|>": 128259, **codes}


def tokenizer(vocabulary: dict[str, Any], added: bool = True) -> dict[str, Any]:
    tokens = [{"content": name, "id": id} for name, id in vocabulary.items()]
    return {"model": {"vocab": {} if added else vocabulary}, "added_tokens": tokens if added else []}


@pytest.mark.parametrize("added", [True, False])
def test_sodas_ids_are_where_its_tokenizer_has_them(tmp_path: Path, added: bool):
    value = {**LLAMA, "num_quantizers": None, "vocab_size": 144644}
    config = read_config(written(tmp_path, {name: v for name, v in value.items() if v is not None}))
    layout = read_layout(written(tmp_path, tokenizer(soda(8), added), "tokenizer.json"), config)
    assert (layout.family, layout.header, layout.end) == (SODA, (128000, 128258), 128259)
    assert layout.codes.shape == (8, 2048)
    assert layout.codes[3, 5] == 128260 + 2048 * 3 + 5
    assert layout.codes.max() == 144643


def test_llama_mimis_ids_are_found_in_any_order(tmp_path: Path):
    names = [f"<{code}_{q}>" for code in range(2048) for q in (3, 1, 0, 2)]
    ids = {name: 128258 + n for n, name in enumerate(names)}
    ids |= {"<|begin_of_text|>": 128000, "<audio>": 128256, "</audio>": 128257}
    written(tmp_path, tokenizer(ids), "tokenizer.json")
    layout = read_layout(tmp_path, read_config(written(tmp_path, LLAMA)))
    assert (layout.family, layout.header, layout.quantizers) == (LLAMA_MIMI, (128000, 128256), 4)
    assert layout.codes[2, 9] == ids["<9_2>"]


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        ({}, "none of Mimi's codes"),
        ({**soda(), "<|audio_start|>": None}, "but has no '<|audio_start|>'"),
        ({**soda(), chr(0xE000 + 2047): None}, "but has no "),
        ({**soda(), chr(0xE000 + 9): 128260}, "one id for several codes"),
        ({**soda(), chr(0xE000 + 9): 10**9}, "none of the 136450"),
        ({**soda(), chr(0xE000 + 9): -1}, "none of the 136450"),
        ({**soda(), chr(0xE000 + 9): "9"}, "ids that are no numbers"),
        (soda(3), "codes of 3 quantizers, config.json says 2"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_refused(tmp_path: Path, harm: dict[str, Any], says: str):
    given = {name: id for name, id in harm.items() if id is not None}
    written(tmp_path, tokenizer(given), "tokenizer.json")
    with pytest.raises(ModelError) as caught:
        read_layout(tmp_path, read_config(written(tmp_path, {**LLAMA, "num_quantizers": 2})))
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize("value", [7, [], {}, {"model": 7}, {"model": {"vocab": [1]}}, {"added_tokens": [{"id": 1}]}])
def test_no_tokenizer_at_all(tmp_path: Path, value: Any):
    written(tmp_path, value, "tokenizer.json")
    with pytest.raises(ModelError):
        read_layout(tmp_path, read_config(written(tmp_path, LLAMA)))


def test_positions_are_stretched_as_llama_3_stretches_them():
    """The fastest turn stays, the slowest takes 32 times as long, and some are in between."""
    scaling, cpu = RopeScaling(32.0, 1.0, 4.0, 8192), torch.device("cpu")
    plain, stretched = (rope_frequencies(64, 500000.0, given, cpu) for given in (None, scaling))
    assert stretched[0] == plain[0] == 1
    assert stretched[-1] == plain[-1] / 32
    between = (stretched < plain) & (stretched > plain / 32)
    turns = 8192 * plain / (2 * torch.pi)
    assert torch.equal(between, (turns > 1) & (turns < 4))


def test_files_of_an_index(tmp_path: Path):
    names = ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"]
    weight_map = {"weight_map": dict(zip("ab", names, strict=True))}
    assert files.shards(written(tmp_path, weight_map, files.INDEX)) == sorted(names)
    assert not files.is_complete(written(tmp_path, LLAMA))
    for name in names:
        (tmp_path / name).touch()
    assert files.is_complete(tmp_path)
    for hostile in ("../a.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", "", 7):
        with pytest.raises(ModelError, match=r"is no name of a safetensors file|has no weight_map"):
            files.shards(written(tmp_path, {"weight_map": {"a": hostile}}, files.INDEX))


def test_weights_that_can_run_code_are_named_as_such(tmp_path: Path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match="can run code; only safetensors are read"):
        files.shards(tmp_path)
