"""The config.json of Mimi, as far as the program depends on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from audiolm_cli.errors import ModelError
from audiolm_cli.fields import bounded, from_json
from audiolm_cli.public.files import read_json
from audiolm_cli.public.layout import CODEBOOK_SIZE, MOST_QUANTIZERS


@dataclass(frozen=True)
class MimiConfig:
    """Sizes of Mimi under config.json's names; all that take memory are bounded."""

    sampling_rate: int = bounded(8000, 48000)
    hidden_size: int = bounded(8, 4096)
    num_filters: int = bounded(1, 512)
    num_residual_layers: int = bounded(1, 8)
    upsampling_ratios: tuple[int, ...] = bounded(1, 64)
    codebook_size: int = bounded(CODEBOOK_SIZE, CODEBOOK_SIZE)
    codebook_dim: int = bounded(1, 4096)
    vector_quantization_hidden_dimension: int = bounded(1, 4096)
    num_hidden_layers: int = bounded(1, 64)
    intermediate_size: int = bounded(8, 65536)
    num_attention_heads: int = bounded(1, 128)
    sliding_window: int = bounded(1, 10000)
    audio_channels: int = bounded(1, 1, default=1)
    num_quantizers: int = bounded(1, MOST_QUANTIZERS, default=MOST_QUANTIZERS)  # the default of `transformers`
    use_causal_conv: bool = True

    def check(self) -> None:
        if not self.use_causal_conv:
            raise ModelError("config.json: use_causal_conv must be true")

    @property
    def samples_per_frame(self) -> int:
        return 2 * math.prod(self.upsampling_ratios)  # two steps of its Transformer make a frame

    @property
    def frame_rate(self) -> float:
        return self.sampling_rate / self.samples_per_frame

    @property
    def lookback(self) -> int:
        """Frames before one that the decoder's Transformer depends on, through all its layers."""
        return -(-self.num_hidden_layers * self.sliding_window // 2)


def read_codec_config(folder: Path) -> MimiConfig:
    """The checked config.json of Mimi; raises ModelError."""
    value = read_json(folder / "config.json")
    if not isinstance(value, dict) or value.get("model_type") != "mimi":
        raise ModelError(f"{folder / 'config.json'}: not that of Mimi")
    known = {field.name for field in fields(MimiConfig)}
    try:
        config: MimiConfig = from_json(MimiConfig, {name: given for name, given in value.items() if name in known})
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None
    return config
