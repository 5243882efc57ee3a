"""The Transformer that all kinds of stages share, its key-value cache, and what a kind must bring.

Queries and keys are rotated by their position (RoFormer, Su et al., 2021). Logits are products with the rows of the id
embedding, for the slice of ids that can come next: a quantizer's own vocabulary.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_cli.config import StageConfig, TokenSpec
from audiolm_cli.language_models.sampling import StageSampling, draw
from audiolm_cli.language_models.tokens import (
    Batch,
    Item,
    Piece,
    StageName,
    TokenSequence,
    Vocabulary,
    Window,
    windows,
)
from audiolm_cli.processor import packed, packs_bfloat16, product, product_plus

if TYPE_CHECKING:
    from audiolm_cli.native.model import Weights

REPLACED = 0.07  # share of the tokens read in training that are replaced at random: one may be wrong in generation, too

Rotation = tuple[Tensor, Tensor]  # cosine and sine


class Sizes(Protocol):
    """What a config says of a Transformer's sizes."""

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


# logits `[B, N, V]`, ids `[B, N]`, -1 where nothing is wanted -> `[B, N]` or `[B, N, K]`
Measure = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """A `Measure`: nats `float32 [B, N]`, 0 where nothing is wanted."""
    return F.cross_entropy(logits.float().transpose(1, 2), wanted, ignore_index=-1, reduction="none")


@dataclass
class KVCache:
    """Keys and values `[layers, slots, kv heads, length, head width]`, right-padded, written in place."""

    keys: Tensor
    values: Tensor

    @classmethod
    def allocate(cls, model: Autoregressive, slots: int, length: int) -> KVCache:
        c, weight = model.config, model.ids.weight
        shape = (c.layers, slots, c.kv_heads, length, c.head_width)
        zeros = (torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in range(2))
        return cls(*zeros)


class Linear(nn.Linear):
    """A bias-free linear layer, alone or with what stands behind it in a block.

    Once `pack` has rearranged its weights a product and what follows it are one operation.
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
        """The product and `other`."""
        if self.packed is None:
            return other + super().forward(x)
        return product_plus(x, self.packed, other)


class Attention(nn.Module, ABC):
    """A block's attention, where `kv_heads` keys and values serve all query heads. What stands around it, a kind of
    block adds."""

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
        """Attention over a whole sequence."""
        return F.scaled_dot_product_attention(q, self._shared(k), self._shared(v), is_causal=causal)

    def attend_cached(self, q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Attention of one new position `[B, heads, 1, W]` over a cache `[B, kv heads, L, W]`: the query heads that
        share a key head stand as rows of one small matrix, so that the cache is read once."""
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


@dataclass(frozen=True)
class NativeParts:
    """What the native kernel reads of a kind, beside blocks, norm and ids: how many quantizers' ids stand one behind
    the other, the levels of their head, the embeddings that features are made of, as they are or by the product with
    `context`, and those of the quantizer asked for."""

    quantizers: int = 1
    levels: Sequence[Any] = ()
    features: nn.Embedding | None = None
    context: Linear | None = None
    asked: nn.Embedding | None = None


class Trunk(nn.Module, ABC):
    """Blocks, the norm behind them, and logits as products with rows of the output matrix."""

    config: Sizes
    blocks: nn.ModuleList
    norm: nn.Module
    ids: nn.Embedding
    native: Weights | None = None  # what the native kernel decodes with, in place of this module
    packed = False

    def __init__(self) -> None:
        super().__init__()
        self.heads: dict[tuple[int, int], Tensor] = {}  # packed rows of `unembedding`, by first id and number

    @property
    def unembedding(self) -> Tensor:
        """The output matrix `[ids, width]`: that of the inputs, where a kind has no other."""
        return self.ids.weight

    @abstractmethod
    def frequencies(self, device: torch.device) -> Tensor:
        """Radians per position of each rotated pair, `float32 [head width / 2]`."""

    def rotation(self, positions: Tensor) -> Rotation:
        """Positions `int64 [B, L]` -> cosine and signed sine `[B, 1, L, head width]` for `rotate`."""
        angle = positions[..., None].float() * self.frequencies(positions.device)
        cosine, sine = angle.cos()[:, None], angle.sin()[:, None]
        mixed = self.training and torch.is_autocast_enabled(angle.device.type)
        dtype = torch.get_autocast_dtype(angle.device.type) if mixed else self.ids.weight.dtype
        return torch.cat([cosine, cosine], -1).to(dtype), torch.cat([-sine, sine], -1).to(dtype)

    def stepped(self) -> Iterator[nn.Module]:
        """The modules whose linear layers see a row for each slot in every step."""
        return iter(self.blocks)

    def logits(self, hidden: Tensor, low: int, size: int) -> Tensor:
        """Hidden states `[..., width]` -> logits `[..., size]` of the ids low to low + size."""
        if not self.packed:
            return F.linear(hidden, self.unembedding[low : low + size])
        if (low, size) not in self.heads:
            self.heads[low, size] = packed(self.unembedding[low : low + size])
        return product(hidden, self.heads[low, size])

    def pack(self) -> None:
        """Rearranges the weights of a model that decodes in bfloat16 on a CPU; does nothing where that cannot be."""
        weight = self.ids.weight
        if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and packs_bfloat16():
            self.packed = True
            for module in self.modules():
                if isinstance(module, Linear):
                    module.pack()


class Stack(Trunk):
    """A stage's model. A kind adds embeddings, sequences, losses and how it is sampled."""

    stage: ClassVar[StageName]
    config: StageConfig
    norm: nn.LayerNorm

    def __init__(self, config: StageConfig, spec: TokenSpec, dropout: float = 0.0):
        super().__init__()
        self.config, self.spec = config, spec
        self.blocks = nn.ModuleList(Block(config, dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    @abstractmethod
    def batch(self, pieces: Sequence[Piece], references: Sequence[Piece] = (), ends: Sequence[bool] = ()) -> Batch:
        """Pieces of one length as the model reads them, in stage 2 behind `references` of one length, if any. Stage 1
        has one more target, which is `<end>` where `ends` says so."""

    @abstractmethod
    def token_losses(self, batch: Batch, measure: Measure = cross_entropy) -> Tensor:
        """Cross entropy in nats of every target but `<end>`: `float32 [B, steps, quantizers]`, of which stage 1 has
        one, 0 for specials; with another measure its K numbers of each, `[B, steps, K, quantizers]`."""

    @abstractmethod
    def training_loss(self, batch: Batch) -> Tensor:
        """Mean cross entropy in nats of all targets, behind inputs of which some are replaced."""

    def native_parts(self) -> NativeParts | None:
        """None for a kind that the native kernel does not know."""
        return None

    @property
    def window(self) -> int:
        """Semantic tokens that the model hears at once."""
        return round(self.config.window_seconds * self.spec.semantic_rate)

    def windows(self, total: float, known: int = 0) -> Iterator[Window]:
        """The windows, in semantic tokens, of `total` tokens of which the first `known` are there; each begins with
        half a window of what comes before. `total` may be infinite."""
        return windows(total, known, self.window, self.window // 2, self.window)

    def layers(self) -> Iterator[Block]:
        return cast("Iterator[Block]", iter(self.blocks))

    def start(self) -> None:
        """Random weights; those that write to the residual stream are smaller the more of them there are."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.layers():
            for linear in (block.output, block.down):
                nn.init.normal_(linear.weight, std=0.02 / (2 * self.config.layers) ** 0.5)

    def frequencies(self, device: torch.device) -> Tensor:
        return frequencies(self.config.head_width // 2, self.config.rotary_base, device)


class Autoregressive(Trunk):
    """A model that goes on from what it has made: what the engine needs of one. What it makes in a step is one token,
    or one frame of Q of them: ids are `[B, L]` or `[B, L, Q]` then."""

    @property
    def feature_width(self) -> int:
        """Numbers that `features` says of a position."""
        return self.config.width

    def layers(self) -> Iterator[Attention]:
        return cast("Iterator[Attention]", iter(self.blocks))

    @abstractmethod
    def features(self, fields: Tensor) -> Tensor:
        """What is known of positions before their tokens are: fields `int64 [B, L, 2 + C]` -> `[B, L, feature
        width]`."""

    @abstractmethod
    def embed(self, ids: Tensor, features: Tensor) -> Tensor:
        """ids `int64 [B, L]` or `[B, L, Q]`, features `[B, L, width]` -> `[B, L, width]`."""

    @abstractmethod
    def draw(self, hidden: Tensor, uniform: Tensor, low: int, size: int, sampling: StageSampling) -> Tensor:
        """What comes next: hidden `[B, width]`, uniform numbers `[B]` or `[B, Q]` -> ids of the same shape, in
        [low, low + size)."""

    def forward(self, ids: Tensor, fields: Tensor) -> Tensor:
        """A whole sequence without cache: hidden states `[B, L, width]` behind the last norm."""
        x, rotation = self.embed(ids, self.features(fields)), self.rotation(fields[..., 1])
        for block in self.layers():
            q, k, v = block.project(x, rotation)
            x = block.finish(x, block.attend(q, k, v))
        return self.norm(x)

    def prefill(self, ids: Tensor, features: Tensor, rotation: Rotation, cache: KVCache, slot: int) -> Tensor:
        """One item's prefix `[1, L]` into its slot of the cache; hidden state of the last position, `[1, width]`."""
        x, length = self.embed(ids, features), ids.shape[1]
        for layer, block in enumerate(self.layers()):
            q, k, v = block.project(x, rotation)
            cache.keys[layer, slot, :, :length] = k[0]
            cache.values[layer, slot, :, :length] = v[0]
            x = block.finish(x, block.attend(q, k, v))
        return self.norm(x[:, -1])

    def step(
        self, ids: Tensor, features: Tensor, rotation: Rotation, cache: KVCache, where: Any, longest: int,
        bias: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """One more position for every slot: ids `[B]` or `[B, Q]`, features `[B, width]`, rotation `[B, 1, 1, head
        width]`; `where` is the index of `[B, kv heads]` places in a layer's cache that its keys and values go to.

        `longest` bounds what attention reads; `bias` `[B, 1, 1, longest]` hides what lies behind an item's own end and
        may be None when nothing does. Hidden states `[B, width]`.
        """
        x = self.embed(ids[:, None], features[:, None])
        for block, keys, values in zip(self.layers(), cache.keys, cache.values, strict=True):
            q, k, v = block.project(x, rotation)
            keys[where], values[where] = k[:, :, 0], v[:, :, 0]
            x = block.finish(x, block.attend_cached(q, keys[:, :, :longest], values[:, :, :longest], bias))
        return self.norm(x[:, 0])


class Decoder(Stack, Autoregressive):
    """A stage's model that the engine decodes."""

    @abstractmethod
    def item(self, sequence: TokenSequence, uniform: Tensor, guides: tuple[TokenSequence, ...] = ()) -> Item:
        """What the engine is to make: the unknown tokens of a sequence, with `uniform float32 [tokens]` in flattened
        order."""


class Transformer(Decoder):
    """Makes token after token. A token's input is the sum of the embeddings of its id and its stream."""

    streams_known: ClassVar[int] = 1

    def __init__(self, config: StageConfig, spec: TokenSpec, dropout: float = 0.0):
        super().__init__(config, spec, dropout)
        self.vocabulary = Vocabulary(self.stage, spec)
        self.ids = nn.Embedding(self.vocabulary.size, config.width)
        self.streams = nn.Embedding(self.streams_known, config.width)
        self.start()

    def native_parts(self) -> NativeParts:
        return NativeParts(features=self.streams)

    def features(self, fields: Tensor) -> Tensor:
        found: Tensor = self.streams(fields[..., 0])
        return found

    def embed(self, ids: Tensor, features: Tensor) -> Tensor:
        embedded: Tensor = self.ids(ids)
        return embedded + features

    def draw(self, hidden: Tensor, uniform: Tensor, low: int, size: int, sampling: StageSampling) -> Tensor:
        return draw(self.logits(hidden, low, size), uniform, sampling) + low

    def item(self, sequence: TokenSequence, uniform: Tensor, guides: tuple[TokenSequence, ...] = ()) -> Item:
        lows = self.vocabulary.lows
        return Item(sequence, lows * (len(uniform) // len(lows)), self.vocabulary.choices, uniform, guides=guides)

    def token_losses(self, batch: Batch, measure: Measure = cross_entropy) -> Tensor:
        return self._losses(batch, batch.ids, measure)

    def training_loss(self, batch: Batch) -> Tensor:
        losses = self._losses(batch, self._replaced(batch))
        return losses.sum() / (batch.ids[:, -batch.targets :] >= 0).sum()

    def _losses(self, batch: Batch, inputs: Tensor, measure: Measure = cross_entropy) -> Tensor:
        """Of all targets behind `inputs`: `[B, steps, quantizers]` or `[B, steps, K, quantizers]`."""
        size = self.vocabulary.end + 1 if self.stage == "semantic" else self.vocabulary.choices
        lows, targets = self.vocabulary.lows, batch.ids[:, -batch.targets :]
        hidden = self(inputs[:, :-1], batch.fields[:, :-1])[:, -batch.targets :]
        places = [(slice(n, None, len(lows)), low) for n, low in enumerate(lows)]
        return torch.stack(
            [measure(self.logits(hidden[:, p], low, size), targets[:, p] - low) for p, low in places], -1
        )

    def _replaced(self, batch: Batch) -> Tensor:
        """The ids of a batch, some tokens among its targets replaced by others of the same kind."""
        size, targets = self.vocabulary.choices, batch.ids[:, -batch.targets :]
        other = targets - (targets - self.vocabulary.lows[0]) % size + torch.randint_like(targets, size)
        chosen = (torch.rand(targets.shape, device=targets.device) < REPLACED) & (targets < self.vocabulary.begin)
        return torch.cat([batch.ids[:, : -batch.targets], torch.where(chosen, other, targets)], 1)


@functools.cache
@torch.inference_mode(False)  # whoever asks first, training may be next
def frequencies(half: int, base: float, device: torch.device) -> Tensor:
    """Radians per position of each rotated pair, `float32 [half]`."""
    return base ** (-torch.arange(half, device=device) / half)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotates pairs (i, i + half) of the last dimension of `[B, heads, L, head width]` by cosine and signed sine."""
    cosine, sine = rotation
    return torch.addcmul(x * cosine, x.roll(x.shape[-1] // 2, -1), sine)
