"""The Transformer that all kinds of stages share, its KV cache, and the interface of a kind.

Logits are products with rows of the id embedding, only for the ids that can come next: a quantizer's own vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_cli.config import StageConfig, TokenSpec
from audiolm_cli.language_models.layers import Attention, Block, Linear, Rotation, Sizes, frequencies
from audiolm_cli.language_models.sampling import StageSampling, draw
from audiolm_cli.language_models.tokens import (
    Batch,
    Item,
    Segment,
    StageName,
    TokenSequence,
    Vocabulary,
    Window,
    windows,
)
from audiolm_cli.processor import packed, packs_bfloat16, product

if TYPE_CHECKING:
    from audiolm_cli.language_models.frames import Level
    from audiolm_cli.native.model import Weights

REPLACED = 0.07  # share of training inputs replaced by random tokens, since sampled ones can be wrong as well

# logits `[B, N, V]`, ids `[B, N]`, -1 where there is no target -> `[B, N]` or `[B, N, K]`
Places = tuple[slice | Tensor, slice, int | Tensor]  # an index in a layer's cache `[slots, kv heads, length]`
Measure = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """A `Measure`: nats `float32 [B, N]`, 0 where there is no target."""
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


@dataclass(frozen=True)
class NativeParts:
    """What the native kernel needs of a kind besides blocks, norm and ids: the number of quantizers whose ids follow
    each other, the levels of the head, the embeddings that features come from, directly or through `context`, and the
    embeddings of the quantizer to predict."""

    quantizers: int = 1
    levels: Sequence[Level] = ()
    features: nn.Embedding | None = None
    context: Linear | None = None
    asked: nn.Embedding | None = None


class Trunk(nn.Module, ABC):
    """Blocks, the final norm, and logits as products with rows of the output matrix."""

    config: Sizes
    blocks: nn.ModuleList
    norm: nn.Module
    ids: nn.Embedding
    native: Weights | None = None  # if set, the native kernel decodes with these in place of this module
    packed = False

    def __init__(self) -> None:
        super().__init__()
        self.heads: dict[tuple[int, int], Tensor] = {}  # packed rows of `unembedding`, by first id and count

    @property
    def unembedding(self) -> Tensor:
        """The output matrix `[ids, width]`: the input embedding, unless a kind has its own."""
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
        """The modules whose linear layers process one row per slot in every decoding step."""
        return iter(self.blocks)

    def logits(self, hidden: Tensor, low: int, size: int) -> Tensor:
        """Hidden states `[..., width]` -> logits `[..., size]` of the ids low to low + size."""
        if not self.packed:
            return F.linear(hidden, self.unembedding[low : low + size])
        if (low, size) not in self.heads:
            self.heads[low, size] = packed(self.unembedding[low : low + size])
        return product(hidden, self.heads[low, size])

    def pack(self) -> None:
        """Packs the weights of a model that decodes in bfloat16 on a CPU; does nothing where that is impossible."""
        weight = self.ids.weight
        if weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and packs_bfloat16():
            self.packed = True
            for module in self.modules():
                if isinstance(module, Linear):
                    module.pack()


class Stack(Trunk):
    """A stage's model. A kind adds embeddings, sequences, losses and sampling."""

    stage: ClassVar[StageName]
    config: StageConfig
    norm: nn.LayerNorm

    def __init__(self, config: StageConfig, spec: TokenSpec, dropout: float = 0.0):
        super().__init__()
        self.config, self.spec = config, spec
        self.blocks = nn.ModuleList(Block(config, dropout) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    @abstractmethod
    def batch(self, pieces: Sequence[Segment], references: Sequence[Segment] = (), ends: Sequence[bool] = ()) -> Batch:
        """Pieces of one length as the model reads them, in stage 2 after `references` of one length, if any. Stage 1
        has one more target: `<end>` where `ends` is true."""

    @abstractmethod
    def token_losses(self, batch: Batch, measure: Measure = cross_entropy) -> Tensor:
        """Cross entropy in nats of every target but `<end>`: `float32 [B, steps, quantizers]` (stage 1: one quantizer),
        0 for specials. Another measure may give K numbers for each: `[B, steps, K, quantizers]`."""

    @abstractmethod
    def training_loss(self, batch: Batch) -> Tensor:
        """Mean cross entropy in nats over all targets, with a share of the inputs replaced."""

    def native_parts(self) -> NativeParts | None:
        """None for a kind that the native kernel does not support."""
        return None

    @property
    def window(self) -> int:
        """The model's window in semantic tokens."""
        return round(self.config.window_seconds * self.spec.semantic_rate)

    def windows(self, total: float, known: int = 0) -> Iterator[Window]:
        """Windows, in semantic tokens, over `total` tokens of which the first `known` are known; each begins with half
        a window of context. `total` may be infinite."""
        return windows(total, known, self.window, self.window // 2, self.window)

    def layers(self) -> Iterator[Block]:
        return cast("Iterator[Block]", iter(self.blocks))

    def start(self) -> None:
        """Random weights; the more layers write to the residual stream, the smaller their weights."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.layers():
            for linear in (block.output, block.down):
                nn.init.normal_(linear.weight, std=0.02 / (2 * self.config.layers) ** 0.5)

    def frequencies(self, device: torch.device) -> Tensor:
        return frequencies(self.config.head_width // 2, self.config.rotary_base, device)


class Autoregressive(Trunk):
    """A model that the engine can decode. A step yields one token, with ids `[B, L]`, or a frame of Q tokens, with ids
    `[B, L, Q]`."""

    @property
    def feature_width(self) -> int:
        """Width of `features` at each position."""
        return self.config.width

    def layers(self) -> Iterator[Attention]:
        return cast("Iterator[Attention]", iter(self.blocks))

    @abstractmethod
    def features(self, fields: Tensor) -> Tensor:
        """A position's input besides its tokens: fields `int64 [B, L, 2 + C]` -> `[B, L, feature width]`."""

    @abstractmethod
    def embed(self, ids: Tensor, features: Tensor) -> Tensor:
        """ids `int64 [B, L]` or `[B, L, Q]`, features `[B, L, width]` -> `[B, L, width]`."""

    @abstractmethod
    def draw(
        self, hidden: Tensor, uniform: Tensor, low: int, size: int, sampling: StageSampling, heat: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """Samples the next ids: hidden `[B, width]`, uniform numbers `[B]` or `[B, Q]` -> ids of the same shape, in
        [low, low + size). heat: factors of the temperature `[B]`."""

    def forward(self, ids: Tensor, fields: Tensor) -> Tensor:
        """A full sequence without cache: hidden states `[B, L, width]` after the final norm."""
        x, rotation = self.embed(ids, self.features(fields)), self.rotation(fields[..., 1])
        for block in self.layers():
            q, k, v = block.project(x, rotation)
            x = block.finish(x, block.attend(q, k, v))
        return self.norm(x)

    def prefill(self, ids: Tensor, features: Tensor, rotation: Rotation, cache: KVCache, slot: int) -> Tensor:
        """Prefills one slot of the cache with an item's prefix `[1, L]`; hidden state of the last position, `[1,
        width]`."""
        x, length = self.embed(ids, features), ids.shape[1]
        for layer, block in enumerate(self.layers()):
            q, k, v = block.project(x, rotation)
            cache.keys[layer, slot, :, :length] = k[0]
            cache.values[layer, slot, :, :length] = v[0]
            x = block.finish(x, block.attend(q, k, v))
        return self.norm(x[:, -1])

    def step(
        self, ids: Tensor, features: Tensor, rotation: Rotation, cache: KVCache, where: Places, longest: int,
        bias: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """One more position for every slot: ids `[B]` or `[B, Q]`, features `[B, width]`, rotation `[B, 1, 1, head
        width]`; `where` indexes the `[B, kv heads]` places in a layer's cache for the new keys and values.

        Attention reads the first `longest` positions; `bias` `[B, 1, 1, longest]` masks those after an item's own end
        and may be None if there are none. Returns hidden states `[B, width]`.
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
        """The item for the engine: a sequence with unknown tokens, and `uniform float32 [tokens]` to sample them with,
        in flattened order."""


class Transformer(Decoder):
    """Predicts token after token. A token's input is the sum of the embeddings of its id and its stream."""

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

    def draw(
        self, hidden: Tensor, uniform: Tensor, low: int, size: int, sampling: StageSampling, heat: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        return draw(self.logits(hidden, low, size), uniform, sampling, heat) + low

    def item(self, sequence: TokenSequence, uniform: Tensor, guides: tuple[TokenSequence, ...] = ()) -> Item:
        lows = self.vocabulary.lows
        return Item(sequence, lows * (len(uniform) // len(lows)), self.vocabulary.choices, uniform, guides=guides)

    def token_losses(self, batch: Batch, measure: Measure = cross_entropy) -> Tensor:
        return self._losses(batch, batch.ids, measure)

    def training_loss(self, batch: Batch) -> Tensor:
        losses = self._losses(batch, self._replaced(batch))
        return losses.sum() / (batch.ids[:, -batch.targets :] >= 0).sum()

    def _losses(self, batch: Batch, inputs: Tensor, measure: Measure = cross_entropy) -> Tensor:
        """Losses of all targets given `inputs`: `[B, steps, quantizers]` or `[B, steps, K, quantizers]`."""
        size = self.vocabulary.end + 1 if self.stage == "semantic" else self.vocabulary.choices
        lows, targets = self.vocabulary.lows, batch.ids[:, -batch.targets :]
        hidden = self(inputs[:, :-1], batch.fields[:, :-1])[:, -batch.targets :]
        places = [(slice(n, None, len(lows)), low) for n, low in enumerate(lows)]
        return torch.stack(
            [measure(self.logits(hidden[:, p], low, size), targets[:, p] - low) for p, low in places], -1
        )

    def _replaced(self, batch: Batch) -> Tensor:
        """The batch's ids with some targets replaced by random tokens of the same kind."""
        size, targets = self.vocabulary.choices, batch.ids[:, -batch.targets :]
        other = targets - (targets - self.vocabulary.lows[0]) % size + torch.randint_like(targets, size)
        chosen = (torch.rand(targets.shape, device=targets.device) < REPLACED) & (targets < self.vocabulary.begin)
        return torch.cat([batch.ids[:, : -batch.targets], torch.where(chosen, other, targets)], 1)
