"""Loads a decoder's weights from its checkpoint's safetensors files. Names and shapes are checked against config.json
before allocating memory, files are memory-mapped, and nothing is in memory twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from audiolm_cli.errors import ModelError, display
from audiolm_cli.mimi.decoder import CodeDecoder
from audiolm_cli.public.config import DecoderConfig
from audiolm_cli.public.files import shards
from audiolm_cli.public.layout import Layout

FLOATS = ("F32", "F16", "BF16")
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
IGNORED = ("lm_head.weight", ".rotary_emb.inv_freq")  # suffixes of names: a copy if matrices are tied; computed here
Shape = tuple[int, ...]


def load_decoder(
    folder: Path, config: DecoderConfig, layout: Layout, device: torch.device, dtype: torch.dtype
) -> CodeDecoder:
    """The `CodeDecoder` of a checkpoint; raises ModelError for files that do not fit its config."""
    with _opened(folder) as files:
        tied = _check(files, folder, config)
        with torch.device("meta"):
            model = CodeDecoder(config, layout.quantizers, len(layout.header), tied)
        ready = {}
        for name, like in model.state_dict().items():
            ready[name] = made = torch.empty(like.shape, device=device, dtype=dtype)
            place = 0
            for rows in _rows(files, name, layout, config):
                made[place : place + len(rows)] = rows
                place += len(rows)
    model.load_state_dict(ready, assign=True)
    return model.eval().requires_grad_(False)


def check_weights(folder: Path, config: DecoderConfig) -> None:
    """Raises ModelError for files whose tensors are not those that the config implies; reads only the headers."""
    with _opened(folder) as files:
        _check(files, folder, config)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[dict[str, Any]]:
    """The file of each tensor, by name."""
    found: dict[str, Any] = {}
    try:
        with contextlib.ExitStack() as stack:
            for name in shards(folder):
                if not (folder / name).is_file():
                    raise ModelError(f"{folder / name}: missing")
                handle = stack.enter_context(safe_open(folder / name, framework="pt"))
                for key in handle.keys():  # noqa: SIM118 (it is no dict)
                    if key in found:
                        raise ModelError(f"{folder / name}: has tensor {display(key[:128])} a second time")
                    found[key] = handle
            yield found
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder}: not readable as safetensors ({error})") from error


def _check(files: dict[str, Any], folder: Path, config: DecoderConfig) -> bool:
    """Checks names, shapes and dtypes; returns whether input and output matrix are tied."""
    tied = HEAD not in files if config.tie_word_embeddings is None else config.tie_word_embeddings
    implied = _implied(config, tied)
    for name, shape in implied.items():
        if name not in files:
            raise ModelError(f"{folder}: tensor {name} is missing")
        part = files[name].get_slice(name)
        if tuple(part.get_shape()) != shape:
            raise ModelError(f"{folder}: tensor {name} has shape {part.get_shape()}, config.json implies {list(shape)}")
        if part.get_dtype() not in FLOATS:
            raise ModelError(f"{folder}: tensor {name} has dtype {part.get_dtype()}")
    for name in files.keys() - implied.keys():
        if not name.endswith(IGNORED):
            raise ModelError(f"{folder}: tensor {display(name[:128])} does not belong there")
    return tied


def _rows(files: dict[str, Any], name: str, layout: Layout, config: DecoderConfig) -> Iterator[Tensor]:
    """The rows of one of the model's tensors, from one or more of the checkpoint's."""
    if name in ("ids.weight", "head"):
        source = EMBEDDING if name == "ids.weight" else HEAD
        part = files[source].get_slice(source)
        ids = layout.codes.reshape(-1)
        for first, count in _runs(np.append(ids, layout.header) if name == "ids.weight" else ids):
            yield part[first : first + count]
        return
    for source in _sources(name, config):
        yield files[source].get_tensor(source)


def _runs(ids: np.ndarray) -> Iterator[tuple[int, int]]:
    """Splits ids into ranges of consecutive ones: first and count."""
    for run in np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1):
        yield int(run[0]), len(run)


def _sources(name: str, config: DecoderConfig) -> list[str]:
    """The checkpoint's names of the parts of one of the model's tensors."""
    if name == "norm.weight":
        return ["model.norm.weight"]
    _, layer, part, *rest = name.split(".")
    named = {
        "attention_norm": ["input_layernorm"],
        "feedforward_norm": ["post_attention_layernorm"],
        "qkv": [f"self_attn.{which}_proj" for which in "qkv"],
        "output": ["self_attn.o_proj"],
        "gate_up": ["mlp.gate_proj", "mlp.up_proj"],
        "down": ["mlp.down_proj"],
        "qk_norms": [f"self_attn.{'qk'[int(rest[0])]}_norm"] if part == "qk_norms" else [],
    }[part]
    return [f"model.layers.{layer}.{own}.weight" for own in named]


def _implied(config: DecoderConfig, tied: bool) -> dict[str, Shape]:
    """Names and shapes of a checkpoint's tensors."""
    width, inner = config.width, config.intermediate_size
    queries, keys = config.heads * config.head_width, config.kv_heads * config.head_width
    found: dict[str, Shape] = {EMBEDDING: (config.vocab_size, width), "model.norm.weight": (width,)}
    if not tied:
        found[HEAD] = (config.vocab_size, width)
    layer: dict[str, Shape] = {
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
        "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    if config.model_type == "qwen3":
        layer |= {f"self_attn.{which}_norm": (config.head_width,) for which in "qk"}
    for number in range(config.layers):
        found |= {f"model.layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return found
