"""Stage 2 with a step for every frame instead of every token: a small head makes the frame's codes one after another.

Where AudioLM flattens the quantizers into 200 steps a second, the Transformer takes 50: its input is the sum of a
frame's code embeddings and of what the semantic tokens around the next frame say, and its hidden state is turned into
that frame's first code, then into the second given the first, and so on, as in the RQ-Transformer (Lee et al., 2022)
and Moshi (Défossez et al., 2024). The semantic tokens come with the frames, so there is no prefix of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from audiolm_cli.config import StageConfig, TokenSpec
from audiolm_cli.language_models.sampling import StageSampling, draw
from audiolm_cli.language_models.tokens import FRAME_OFFSETS, FRAME_SPECIALS
from audiolm_cli.language_models.transformer import Decoder, Linear

SEMANTIC_SHARE = 8  # the width of a semantic token's embedding is that of the model divided by this


class Level(nn.Module):
    """A quantizer's part of the head: the frame's hidden state and codes so far -> hidden state for the next code."""

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
    """Makes frame after frame. A position's ids are its frame's codes, or for each quantizer the same special."""

    def __init__(self, config: StageConfig, spec: TokenSpec, dropout: float = 0.0):
        super().__init__(config, spec, "coarse", dropout)
        self.rows = spec.codebook_size + FRAME_SPECIALS
        self.ids = nn.Embedding(spec.coarse * self.rows, config.width)
        size = max(1, config.width // SEMANTIC_SHARE)
        self.semantic = nn.Embedding(spec.semantic_vocabulary + 1, size)  # the last one: there is none
        self.context = Linear(len(FRAME_OFFSETS) * size, config.width)
        self.levels = nn.ModuleList(Level(config.width) for _ in range(spec.coarse - 1))
        self.start()

    def features(self, fields: Tensor) -> Tensor:
        features: Tensor = self.context(self.semantic(fields[..., 2:]).flatten(-2))
        return features

    def stepped(self) -> Iterator[nn.Module]:
        return itertools.chain(self.blocks, self.levels)

    def embed(self, ids: Tensor, features: Tensor) -> Tensor:
        return self._embedded(ids).sum(-2) + features

    def code_logits(self, hidden: Tensor, codes: Tensor) -> list[Tensor]:
        """Hidden states `[..., width]` and the codes to come `int64 [..., Q]` -> logits `[..., codebook_size]` of every
        quantizer, given the codes of those before it."""
        before = self._embedded(codes).cumsum(-2)
        states = [hidden, *(level(hidden, before[..., q, :]) for q, level in enumerate(self.levels))]
        return [self.logits(state, q * self.rows, self.spec.codebook_size) for q, state in enumerate(states)]

    def draw(self, hidden: Tensor, uniform: Tensor, low: int, size: int, sampling: StageSampling) -> Tensor:
        codes: list[Tensor] = []
        state, before = hidden, torch.zeros_like(hidden)
        for q in range(self.spec.coarse):
            if q:
                before = before + self.ids(codes[-1] + (q - 1) * self.rows)
                state = self.levels[q - 1](hidden, before)
            codes.append(draw(self.logits(state, q * self.rows + low, size), uniform[:, q], sampling) + low)
        return torch.stack(codes, -1)

    def _embedded(self, ids: Tensor) -> Tensor:
        """`[..., Q]` -> `[..., Q, width]`."""
        embedded: Tensor = self.ids(ids + torch.arange(self.spec.coarse, device=ids.device) * self.rows)
        return embedded
