"""Stage 3 without a step per token: each fine quantizer of all frames in one pass, eight passes a window.

A frame's finer codes depend on its coarser ones far more than on its neighbours' fine ones, so AudioLM's 400 steps a
second are not needed: like SoundStorm (Borsos et al., 2023) and the second model of VALL-E (Wang et al., 2023), this
fills in level by level. A frame's input is the sum of the embeddings of its known codes and of the quantizer to
predict; attention is not causal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_cli.config import StageConfig, StageSampling, TokenSpec
from audiolm_cli.language_models.sampling import sample
from audiolm_cli.language_models.tokens import Batch, Infill, Segment, Window, fine_window, frames
from audiolm_cli.language_models.transformer import REPLACED, Measure, NativeParts, Stack, cross_entropy

FIRST_SECONDS = 0.5  # length of the first window for `fill`; each later one is twice as long as the last
HELD_SECONDS = 0.1  # at the end of a window, which the next window samples again


class ParallelTransformer(Stack):
    """Predicts one quantizer's codes for all frames at once."""

    stage = "fine"

    def __init__(self, config: StageConfig, spec: TokenSpec, dropout: float = 0.0):
        super().__init__(config, spec, dropout)
        self.ids = nn.Embedding(spec.quantizers * spec.codebook_size + 1, config.width)  # the last one: unknown
        self.asked = nn.Embedding(spec.quantizers + 1, config.width)  # the last one: none, the code is known
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

    def native_parts(self) -> NativeParts:
        return NativeParts(self.spec.quantizers, asked=self.asked)

    def batch(self, pieces: Sequence[Segment], references: Sequence[Segment] = (), ends: Sequence[bool] = ()) -> Batch:
        codes = torch.stack([codes for _, codes in pieces])
        return Batch(codes, codes[:, :0], codes.shape[-1])

    def token_losses(self, batch: Batch, measure: Measure = cross_entropy) -> Tensor:
        codes, losses = batch.ids, []
        levels = torch.arange(self.spec.quantizers, device=codes.device)[:, None]
        for q in range(self.spec.coarse, self.spec.quantizers):
            hidden = self(codes.masked_fill(levels >= q, -1), torch.full((len(codes),), q, device=codes.device))
            losses.append(measure(self.code_logits(hidden, q), codes[:, q]))
        return torch.stack(losses, -1)

    def training_loss(self, batch: Batch) -> Tensor:
        """The loss of one random quantizer per item, in the frames after a fully known beginning of random length."""
        codes, spec, (count, _, frames) = batch.ids, self.spec, batch.ids.shape
        draw = functools.partial(torch.randint, size=(count,), device=codes.device)
        quantizer, whole = draw(spec.coarse, spec.quantizers), draw(0, frames // 2) * draw(0, 2)
        wanted = codes[torch.arange(count, device=codes.device), quantizer]
        wrong = torch.rand(codes.shape, device=codes.device) < REPLACED
        inputs = torch.where(wrong, torch.randint_like(codes, spec.codebook_size), codes)
        levels, places = (torch.arange(n, device=codes.device) for n in codes.shape[1:])
        unknown = (levels >= quantizer[:, None])[:, :, None] & (places >= whole[:, None])[:, None]
        hidden = self(inputs.masked_fill(unknown, -1), quantizer)
        losses = []
        for q in range(spec.coarse, spec.quantizers):
            counted = (quantizer == q)[:, None] & (places >= whole[:, None])
            logits = self.code_logits(hidden[counted], q).float()
            losses.append(F.cross_entropy(logits, wanted[counted], reduction="sum"))
        return torch.stack(losses).sum() / (frames - whole).sum()

    def fillings(self, known: int) -> Iterator[Window]:
        """The windows, which grow, so that the first is ready early, and overlap: the next window samples the last
        frames of each again, with what follows them in sight. Each begins with up to 1 s of complete frames."""
        size, context = fine_window(self.spec, self.config.window_seconds)
        held = min(frames(self.spec, HELD_SECONDS), (size - context) // 2)
        new, start = max(frames(self.spec, FIRST_SECONDS), 2 * held), known
        while True:
            end = start + min(new, size - context)
            yield max(0, start - context), start, end
            new, start = min(2 * new, size), end - held

    @torch.inference_mode()
    def fill(
        self,
        fillings: list[Infill],
        sampling: StageSampling,
        batch_size: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """Samples the fine codes of windows, `int64 [fine, F]` each, one quantizer after the other."""
        if self.native is not None:
            from audiolm_cli.native import fill

            return fill.fill(self.native, self.spec.coarse, fillings, sampling, progress)
        results, device, s = [], self.ids.weight.device, sampling
        for filling in fillings:
            codes, known = filling.codes.to(device), filling.known
            for q, uniform in enumerate(filling.uniform.view(-1, self.spec.fine).T.to(device), self.spec.coarse):
                hidden = self(codes[None], torch.tensor([q], device=device))[0, known:]
                logits = self.code_logits(hidden, q)
                codes[q, known:] = sample(logits, uniform.contiguous(), s.temperature, s.top_k, s.top_p)
                if progress:
                    progress(filling.kept)
            results.append(codes[self.spec.coarse :, known:].cpu())
        return results
