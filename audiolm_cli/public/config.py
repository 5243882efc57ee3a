"""The config.json of a Llama or Qwen3 decoder, bounded and checked; sizes keep the names that they have there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from audiolm_cli.errors import ModelError
from audiolm_cli.fields import bounded, from_json
from audiolm_cli.public.files import read_json

MAX_PARAMETERS = 20_000_000_000
REQUIRED = [
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "rms_norm_eps"),
]


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's scaling of rotary frequencies: those below `low_freq_factor` turns in the original context are divided
    by `factor`, those above `high_freq_factor` turns stay."""

    factor: float = bounded(1, 1024)
    low_freq_factor: float = bounded(0.01, 1024)
    high_freq_factor: float = bounded(0.01, 1024)
    original_max_position_embeddings: int = bounded(16, 1 << 24)

    def check(self) -> None:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ModelError("config.json: rope.high_freq_factor must exceed rope.low_freq_factor")


@dataclass(frozen=True)
class DecoderConfig:
    """The sizes of a decoder. Some checkpoints trained on Mimi's codes state `num_quantizers`. Without
    `tie_word_embeddings`, the weights show whether there is an output matrix."""

    model_type: Literal["llama", "qwen3"]
    vocab_size: int = bounded(2, 1 << 20)
    hidden_size: int = bounded(8, 16384)
    intermediate_size: int = bounded(8, 65536)
    num_hidden_layers: int = bounded(1, 128)
    num_attention_heads: int = bounded(1, 256)
    max_position_embeddings: int = bounded(16, 1 << 24)
    rms_norm_eps: float = bounded(1e-12, 0.1)
    num_key_value_heads: int = bounded(1, 256)
    head_dim: int = bounded(2, 1024)
    rope_theta: float = bounded(10, 1e9)
    rope: RopeScaling | None = None
    tie_word_embeddings: bool | None = None
    num_quantizers: int | None = bounded(1, 32, default=None)

    def check(self) -> None:
        if self.head_dim % 2:
            raise ModelError("config.json: head_dim must be even")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelError("config.json: num_attention_heads must be a multiple of num_key_value_heads")
        if self.parameters > MAX_PARAMETERS:
            raise ModelError("config.json: larger than any model that this program is made for")

    @property
    def parameters(self) -> int:
        """Weights of the repeated layers, without embeddings and norms."""
        attention = 2 * (self.heads + self.kv_heads) * self.head_width
        return self.layers * self.width * (attention + 3 * self.intermediate_size)

    # under the engine's names
    @property
    def width(self) -> int:
        return self.hidden_size

    @property
    def layers(self) -> int:
        return self.num_hidden_layers

    @property
    def heads(self) -> int:
        return self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads

    @property
    def head_width(self) -> int:
        return self.head_dim


def read_config(folder: Path) -> DecoderConfig:
    """The checked config.json of a decoder; raises ModelError for settings that are not supported here."""
    value = read_json(folder / "config.json")
    try:
        return _decoder_config(value)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None


def _decoder_config(value: dict[str, Any]) -> DecoderConfig:
    for name, allowed in {
        "hidden_act": ("silu",),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "use_sliding_window": (False,),
        "quantization_config": (),
        "auto_map": (),  # the checkpoint's own code
    }.items():
        if value.get(name) is not None and value[name] not in allowed:
            raise ModelError(f"config.json: {name} {str(value[name])[:64]!r} is none that is built here")
    for name in REQUIRED:
        if name not in value:
            raise ModelError(f"config.json: {name} is missing")
    found = {name: value[name] for name in (*REQUIRED, "tie_word_embeddings", "num_quantizers") if name in value}
    heads = found["num_attention_heads"]
    found["num_key_value_heads"] = value.get("num_key_value_heads") or heads
    found["head_dim"] = value.get("head_dim", 128 if found["model_type"] == "qwen3" else None)
    if found["head_dim"] is None and type(heads) is int and type(found["hidden_size"]) is int and heads > 0:
        found["head_dim"] = found["hidden_size"] // heads
    rope = value.get("rope_parameters") or value.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ModelError("config.json: rope_scaling must be an object")
    found["rope_theta"] = rope.get("rope_theta", value.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "llama3":
        found["rope"] = {name: rope[name] for name in RopeScaling.__annotations__ if name in rope}
    elif kind != "default":
        raise ModelError(f"config.json: rope_type {str(kind)[:64]!r} is none that is built here")
    config: DecoderConfig = from_json(DecoderConfig, found)
    return config
