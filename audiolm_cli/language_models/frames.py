"""Stage 2 with one Transformer step per frame instead of per token: a small head samples the frame's codes in turn.

AudioLM flattens the quantizers into 200 steps a second; here the Transformer takes 50. Its input is the sum of a
frame's code embeddings plus an embedding of the semantic tokens around the next frame. From its hidden state the head
predicts that frame's first code, then the second given the first, and so on, as in the RQ-Transformer (Lee et al.,
2022) and Moshi (Défossez et al., 2024). Each frame brings its semantic tokens, so they need no prefix.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from audiolm_cli.config import StageConfig, TokenSpec
from audiolm_cli.language_models.layers import Linear
from audiolm_cli.language_models.sampling import StageSampling, draw
from audiolm_cli.language_models.tokens import Batch, Item, Segment, TokenSequence
from audiolm_cli.language_models.transformer import REPLACED, Decoder, Measure, NativeParts, cross_entropy

SEMANTIC_DIVISOR = 8  # the model's width by that of a semantic token's embedding
OFFSETS = (-8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8)  # frames, relative to one, whose semantic tokens condition it
SPECIALS = 2  # ids after the codes of every quantizer: begin, gap
GAP_SECONDS = 0.5  # gap in positions between a reference and what follows it
UNCONDITIONED = 0.1  # share of training crops without semantic tokens, for classifier-free guidance
FAITHFUL_SECONDS = (1.5, 3.0)  # beginning of a training crop whose voice `_drifted` leaves alone, at random


class Level(nn.Module):
    """One quantizer's part of the head: the frame's hidden state and codes so far -> hidden state for the next code."""

    def __init__(self, width: int):
        super().__init__()
        self.codes_norm = nn.LayerNorm(width)
        self.up = Linear(2 * width, width)
        self.down = Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """Hidden states and sums of code embeddings `[..., width]` -> `[..., width]`."""
        both = torch.cat([hidden, self.codes_norm(codes)], -1)
        result: Tensor = self.norm(self.down.plus(self.up.gelu(both), hidden))
        return result


class FrameTransformer(Decoder):
    """Predicts frame after frame. A position's ids are its frame's codes, or one special id for every quantizer."""

    stage = "coarse"
    unconditional = True  # also trained without semantic tokens
    lookahead = OFFSETS[-1]  # frames by which the semantic tokens must be ahead

    def __init__(self, config: StageConfig, spec: TokenSpec, dropout: float = 0.0):
        super().__init__(config, spec, dropout)
        self.rows = spec.codebook_size + SPECIALS
        self.ids = nn.Embedding(spec.coarse * self.rows, config.width)
        size = max(1, config.width // SEMANTIC_DIVISOR)
        self.semantic = nn.Embedding(spec.semantic_vocabulary + 1, size)  # the last one: no token
        self.context = Linear(len(OFFSETS) * size, config.width)
        self.levels = nn.ModuleList(Level(config.width) for _ in range(spec.coarse - 1))
        self.start()

    def native_parts(self) -> NativeParts:
        return NativeParts(self.spec.coarse, cast(list[Level], list(self.levels)), self.semantic, self.context)

    def sequence(self, semantic: Tensor, codes: Tensor, reference: Segment | None = None) -> TokenSequence:
        """`<begin> [reference codes <gap>] codes`, each position with the semantic tokens around the next frame.

        semantic `int64 [S]`; codes `int64 [coarse or more, F]`, -1 where unknown, F at most S * frames_per_semantic;
        the reference is such a pair, fully known.
        """
        parts, start = [self._special(0, 0)], 0
        if reference is not None:
            start = reference[1].shape[1] + round(GAP_SECONDS * self.spec.sample_rate / self.spec.samples_per_frame)
            parts += [self._frames(*reference, 0), self._special(1, start)]
        parts.append(self._frames(semantic, codes, start))
        ids, times, context = (torch.cat(column) for column in zip(*parts, strict=True))
        context = torch.cat([context[1:], context[-1:]])  # position n carries the context of the frame it predicts
        return TokenSequence(ids, torch.cat([torch.zeros_like(times)[:, None], times[:, None], context], 1))

    def _special(self, number: int, time: int) -> tuple[Tensor, Tensor, Tensor]:
        none = torch.full((1, len(OFFSETS)), self.spec.semantic_vocabulary)
        return torch.full((1, self.spec.coarse), self.spec.codebook_size + number), torch.tensor([time]), none

    def _frames(self, semantic: Tensor, codes: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        times = torch.arange(codes.shape[1])
        at = (times[:, None] + torch.tensor(OFFSETS)) // self.spec.frames_per_semantic
        inside = (at >= 0) & (at < len(semantic))
        around = torch.where(inside, semantic[at.clamp(0, len(semantic) - 1)], self.spec.semantic_vocabulary)
        return codes[: self.spec.coarse].T, start + 1 + times, around

    def batch(self, pieces: Sequence[Segment], references: Sequence[Segment] = (), ends: Sequence[bool] = ()) -> Batch:
        behind: Sequence[Segment | None] = references or [None] * len(pieces)
        sequences = [self.sequence(*piece, before) for piece, before in zip(pieces, behind, strict=True)]
        return Batch.of(sequences, pieces[0][1].shape[1])

    def item(self, sequence: TokenSequence, uniform: Tensor, guides: tuple[TokenSequence, ...] = ()) -> Item:
        numbers = uniform.view(-1, self.spec.coarse)
        return Item(sequence, [0] * len(numbers), self.spec.codebook_size, numbers, guides=guides)

    def codes(self, ids: Tensor) -> Tensor:
        """Sampled ids `[F, Q]` -> codes `[Q, F]`."""
        return ids.T

    def token_losses(self, batch: Batch, measure: Measure = cross_entropy) -> Tensor:
        return self._losses(batch, batch.ids, measure)

    def training_loss(self, batch: Batch) -> Tensor:
        ids, fields, size = batch.ids, batch.fields.clone(), self.spec.codebook_size
        unconditioned = torch.rand(len(fields), device=fields.device) < UNCONDITIONED
        fields[unconditioned, :, 2:] = self.spec.semantic_vocabulary
        wrong = (torch.rand(ids.shape, device=ids.device) < REPLACED) & (ids < size)
        inputs = torch.where(wrong, torch.randint_like(ids, size), self._drifted(batch))
        whole = Batch(ids, fields, targets=ids.shape[1] - 1)  # the loss covers the reference's codes, too
        return self._losses(whole, inputs).sum() / (ids < size).sum()

    def _drifted(self, batch: Batch) -> Tensor:
        """A batch's ids, some frames behind each crop's beginning replaced by frames of any crop with the same semantic
        token.

        In a recording the last frames tell the voice, in a continuation they drift towards that of an average speaker.
        This teaches the model to return to the voice of the beginning.
        """
        ids, none = batch.ids, self.spec.semantic_vocabulary
        tokens = functional.pad(batch.fields[:, :-1, 2 + OFFSETS.index(0)], (1, 0), value=none).flatten()
        order = (tokens + torch.rand(tokens.shape, device=ids.device, dtype=torch.float64)).argsort()
        partner = torch.empty_like(order).scatter_(0, order, order.roll(1))
        fits = (tokens == tokens[partner]).view(ids.shape[:2])
        others = ids.flatten(0, 1)[partner].view_as(ids)

        def uniform(*size: int) -> Tensor:
            return torch.rand(size, device=ids.device)

        low, high = (seconds * self.spec.sample_rate / self.spec.samples_per_frame for seconds in FAITHFUL_SECONDS)
        beginning = low + (high - low) * uniform(len(ids), 1)
        chosen = uniform(*ids.shape[:2]) < uniform(len(ids), 1).square()  # of some crops few, of others most
        chosen &= fits & (torch.arange(ids.shape[1], device=ids.device) > beginning)
        codes = (torch.maximum(ids, others) < self.spec.codebook_size).all(-1)
        return torch.where((chosen & codes)[..., None], others, ids)

    def _losses(self, batch: Batch, inputs: Tensor, measure: Measure = cross_entropy) -> Tensor:
        targets = batch.ids[:, -batch.targets :]
        hidden = self(inputs[:, :-1], batch.fields[:, :-1])[:, -batch.targets :]
        wanted = targets.masked_fill(targets >= self.spec.codebook_size, -1)
        by_quantizer = enumerate(self.code_logits(hidden, inputs[:, -batch.targets :]))
        return torch.stack([measure(logits, wanted[..., q]) for q, logits in by_quantizer], -1)

    def features(self, fields: Tensor) -> Tensor:
        features: Tensor = self.context(self.semantic(fields[..., 2:]).flatten(-2))
        return features

    def stepped(self) -> Iterator[nn.Module]:
        return itertools.chain(self.blocks, self.levels)

    def embed(self, ids: Tensor, features: Tensor) -> Tensor:
        return self._embedded(ids).sum(-2) + features

    def code_logits(self, hidden: Tensor, codes: Tensor) -> list[Tensor]:
        """Hidden states `[..., width]` and the frames' codes `int64 [..., Q]` -> each quantizer's logits
        `[..., codebook_size]`, given the codes of the quantizers before it."""
        before = self._embedded(codes).cumsum(-2)
        states = [hidden, *(level(hidden, before[..., q, :]) for q, level in enumerate(self.levels))]
        return [self.logits(state, q * self.rows, self.spec.codebook_size) for q, state in enumerate(states)]

    def draw(
        self, hidden: Tensor, uniform: Tensor, low: int, size: int, sampling: StageSampling, heat: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        codes: list[Tensor] = []
        state, before = hidden, torch.zeros_like(hidden)
        for q in range(self.spec.coarse):
            if q:
                before = before + self.ids(codes[-1] + (q - 1) * self.rows)
                state = self.levels[q - 1](hidden, before)
            codes.append(draw(self.logits(state, q * self.rows + low, size), uniform[:, q], sampling, heat) + low)
        return torch.stack(codes, -1)

    def _embedded(self, ids: Tensor) -> Tensor:
        """`[..., Q]` -> `[..., Q, width]`."""
        embedded: Tensor = self.ids(ids + torch.arange(self.spec.coarse, device=ids.device) * self.rows)
        return embedded
