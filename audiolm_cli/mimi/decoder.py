"""Llama's and Qwen3's decoder, as `transformers` defines them, for our engine.

Only the audio part of the vocabulary is kept: ids count the codes of each quantizer in turn, then the header tokens.
The frame order is forced, so a step's output matrix has only the 2,048 rows of the quantizer whose turn it is.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_cli.config import StageSampling
from audiolm_cli.language_models.layers import Attention, Linear, Rotation, rotate
from audiolm_cli.language_models.sampling import draw
from audiolm_cli.language_models.transformer import Autoregressive
from audiolm_cli.public.config import DecoderConfig, RopeScaling
from audiolm_cli.public.layout import CODEBOOK_SIZE


class RMSNorm(nn.Module):
    """Root mean square normalisation, in float32."""

    def __init__(self, width: int, epsilon: float):
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(width)), epsilon

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)).to(x.dtype)


class DecoderBlock(Attention):
    """Pre-norm attention (in Qwen3 with normalised queries and keys) and SwiGLU."""

    def __init__(self, config: DecoderConfig):
        super().__init__(config)
        width, inner = config.width, config.intermediate_size
        self.attention_norm, self.feedforward_norm = (RMSNorm(width, config.rms_norm_eps) for _ in range(2))
        self.qkv = Linear(width, (self.heads + 2 * self.kv_heads) * self.head_width)
        self.output = Linear(self.heads * self.head_width, width)
        self.gate_up, self.down = Linear(width, 2 * inner), Linear(inner, width)
        self.qk_norms = nn.ModuleList(
            RMSNorm(self.head_width, config.rms_norm_eps) for _ in "qk" if config.model_type == "qwen3"
        )

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, -1, self.head_width).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], 1)
        if self.qk_norms:
            q, k = (norm(part) for norm, part in zip(self.qk_norms, (q, k), strict=True))
        return rotate(q, rotation), rotate(k, rotation), v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self.output.plus(attended.transpose(1, 2).flatten(2), x)
        gate, up = self.gate_up(self.feedforward_norm(x)).chunk(2, -1)
        return self.down.plus(F.silu(gate) * up, x)


class CodeDecoder(Autoregressive):
    """Predicts the codes of `quantizers`, one a step, after `specials` header tokens: ids `quantizer * 2048 + code`,
    then the specials from `quantizers * 2048` on."""

    config: DecoderConfig

    def __init__(self, config: DecoderConfig, quantizers: int, specials: int, tied: bool):
        super().__init__()
        self.config, self.quantizers = config, quantizers
        self.ids = nn.Embedding(quantizers * CODEBOOK_SIZE + specials, config.width)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.rms_norm_eps)
        self.head = None if tied else nn.Parameter(torch.empty(quantizers * CODEBOOK_SIZE, config.width))

    @property
    def unembedding(self) -> Tensor:
        return self.ids.weight if self.head is None else self.head

    def frequencies(self, device: torch.device) -> Tensor:
        return rope_frequencies(self.config.head_width, self.config.rope_theta, self.config.rope, device)

    @property
    def feature_width(self) -> int:
        return 0  # a token has no input besides its id and position

    def features(self, fields: Tensor) -> Tensor:
        return self.ids.weight.new_zeros(*fields.shape[:2], 0)

    def embed(self, ids: Tensor, features: Tensor) -> Tensor:
        embedded: Tensor = self.ids(ids)
        return embedded

    def draw(
        self, hidden: Tensor, uniform: Tensor, low: int, size: int, sampling: StageSampling, heat: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        return draw(self.logits(hidden, low, size), uniform, sampling, heat) + low


@functools.cache
@torch.inference_mode(False)  # cached: it must not be an inference tensor
def rope_frequencies(head_width: int, base: float, scaling: RopeScaling | None, device: torch.device) -> Tensor:
    """Radians per position of each rotated pair, `float32 [head width / 2]`, scaled as in Llama 3: divided by `factor`
    below `low_freq_factor` turns in the original context, unchanged above `high_freq_factor` turns, interpolated in
    between."""
    turns = 1.0 / base ** (torch.arange(0, head_width, 2, dtype=torch.int64, device=device).float() / head_width)
    if scaling is None:
        return turns
    in_context = scaling.original_max_position_embeddings * turns / (2 * math.pi)
    kept = (in_context - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return torch.lerp(turns / scaling.factor, turns, kept.clamp(0, 1))
