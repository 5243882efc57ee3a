"""Stage 3 without a step for every token: each fine quantizer of all frames in one pass, eight passes a window.

The finer codes of a frame hang on its coarser ones far more than on the fine ones of its neighbours, so AudioLM's 400
steps a second can be saved: SoundStorm (Borsos et al., 2023) and the second model of VALL-E (Wang et al., 2023) fill in
level by level. A frame goes in as the sum of the embeddings of its codes as far as they are known, and of the quantizer
that is asked for; attention sees all frames, those behind as well.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from audiolm_cli.config import StageConfig, TokenSpec
from audiolm_cli.language_models.transformer import Stack


class ParallelTransformer(Stack):
    """Predicts one quantizer's codes for all frames at once."""

    def __init__(self, config: StageConfig, spec: TokenSpec, dropout: float = 0.0):
        super().__init__(config, spec, "fine", dropout)
        self.ids = nn.Embedding(spec.quantizers * spec.codebook_size + 1, config.width)  # the last one: not known
        self.asked = nn.Embedding(spec.quantizers + 1, config.width)  # the last one: nothing, all is known
        self.start()

    def forward(self, codes: Tensor, quantizer: Tensor) -> Tensor:
        """Codes `int64 [B, Q, F]`, -1 where unknown, quantizer `int64 [B]` -> hidden states `[B, F, width]`."""
        spec, nothing = self.spec, self.spec.quantizers
        own = torch.arange(spec.quantizers, device=codes.device)[:, None] * spec.codebook_size
        ids = torch.where(codes < 0, len(self.ids.weight) - 1, codes + own)
        wanted = codes[torch.arange(len(codes), device=codes.device), quantizer]  # [B, F]
        x = self.ids(ids.transpose(1, 2)).sum(2) + self.asked(torch.where(wanted < 0, quantizer[:, None], nothing))
        rotation = self.rotation(torch.arange(codes.shape[2], device=codes.device)[None])
        for block in self.layers():
            x = block.finish(x, block.attend(*block.project(x, rotation), causal=False))
        hidden: Tensor = self.norm(x)
        return hidden

    def code_logits(self, hidden: Tensor, quantizer: int) -> Tensor:
        """Hidden states `[..., width]` -> logits `[..., codebook_size]` of a quantizer's codes."""
        return self.logits(hidden, quantizer * self.spec.codebook_size, self.spec.codebook_size)
