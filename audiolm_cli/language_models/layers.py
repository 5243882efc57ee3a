"""The layers of a Transformer: linear layers, grouped-query attention, blocks, rotary position embeddings.

Queries and keys are rotated as in RoFormer (Su et al., 2021).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_cli.config import StageConfig
from audiolm_cli.processor import packed, product, product_plus

Rotation = tuple[Tensor, Tensor]  # cosine and sine


class Sizes(Protocol):
    """The sizes of a Transformer in a config."""

    @property
    def layers(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def head_width(self) -> int: ...
    @property
    def width(self) -> int: ...


class Linear(nn.Linear):
    """A bias-free linear layer, alone or fused with the operation after it in a block.

    Once `pack` has rearranged its weights, the product and that operation are one call.
    """

    packed: Tensor | None = None

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def pack(self) -> None:
        self.packed = packed(self.weight)
        self.weight.data = self.weight.data.new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.packed is None else product(x, self.packed)

    def gelu(self, x: Tensor) -> Tensor:
        """GELU of the product."""
        if self.packed is None:
            return F.gelu(super().forward(x))
        return product(x, self.packed, "gelu", "none")

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The product plus `other`."""
        if self.packed is None:
            return other + super().forward(x)
        return product_plus(x, self.packed, other)


class Attention(nn.Module, ABC):
    """Grouped-query attention: `kv_heads` keys and values serve all query heads. A kind of block adds the layers around
    it."""

    def __init__(self, config: Sizes):
        super().__init__()
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width

    @abstractmethod
    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """`[B, L, D]` -> rotated queries `[B, heads, L, head width]`, rotated keys and values `[B, kv heads, ...]`."""

    @abstractmethod
    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Adds the attention's result `[B, heads, L, head width]` and the feed-forward part to `[B, L, D]`."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
        """Attention over a full sequence."""
        return F.scaled_dot_product_attention(q, self._shared(k), self._shared(v), is_causal=causal)

    def attend_cached(self, q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of one new position `[B, heads, 1, W]` over a cache `[B, kv heads, L, W]`: the query heads that
        share a key head are rows of one small matrix, so the cache is read once."""
        grouped = q.view(q.shape[0], self.kv_heads, -1, self.head_width)
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=bias).reshape(q.shape)

    def _shared(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.heads // self.kv_heads, 1) if self.heads > self.kv_heads else x


class Block(Attention):
    """Pre-norm attention and feed-forward."""

    def __init__(self, config: StageConfig, dropout: float):
        super().__init__(config)
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(config.width)
        self.qkv = Linear(config.width, (config.heads + 2 * config.kv_heads) * self.head_width)
        self.output = Linear(config.width, config.width)
        self.feedforward_norm = nn.LayerNorm(config.width)
        self.up = Linear(config.width, config.feedforward)
        self.down = Linear(config.feedforward, config.width)

    def project(self, x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        batch, length, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, -1, self.head_width).transpose(1, 2)
        rotated = rotate(qkv[:, : -self.kv_heads], rotation)
        return rotated[:, : self.heads], rotated[:, self.heads :], qkv[:, -self.kv_heads :]

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = self._add(x, self.output, attended.transpose(1, 2).flatten(2))
        return self._add(x, self.down, self.up.gelu(self.feedforward_norm(x)))

    def _add(self, x: Tensor, linear: Linear, y: Tensor) -> Tensor:
        return x + F.dropout(linear(y), self.dropout) if self.training and self.dropout else linear.plus(y, x)


@functools.cache
@torch.inference_mode(False)  # cached: a tensor made in inference mode could not be used in training
def frequencies(half: int, base: float, device: torch.device) -> Tensor:
    """Radians per position of each rotated pair, `float32 [half]`."""
    return base ** (-torch.arange(half, device=device) / half)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotates pairs (i, i + half) of the last dimension of `[B, heads, L, head width]` by cosine and signed sine."""
    cosine, sine = rotation
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine)
