"""Stage 3 without a step for every token: each fine quantizer of all frames in one pass, eight passes a window.

The finer codes of a frame hang on its coarser ones far more than on the fine ones of its neighbours, so AudioLM's 400
steps a second can be saved: SoundStorm (Borsos et al., 2023) and the second model of VALL-E (Wang et al., 2023) fill in
level by level. A frame goes in as the sum of the embeddings of its codes as far as they are known, and of the quantizer
that is asked for; attention sees all frames, those behind as well.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audiolm_cli.config import StageConfig, StageSampling, TokenSpec
from audiolm_cli.language_models.sampling import Noise, Progress, sample
from audiolm_cli.language_models.tokens import Batch, Piece, Window, extended, fine_window, settled
from audiolm_cli.language_models.tokens import frames as whole_frames
from audiolm_cli.language_models.transformer import REPLACED, Measure, NativeParts, Stack, cross_entropy

FIRST_SECONDS = 0.5  # of the first window that `complete` fills; each following one is twice as long
HELD_SECONDS = 0.1  # at the end of a window, which the next one fills again


class ParallelTransformer(Stack):
    """Predicts one quantizer's codes for all frames at once."""

    stage = "fine"

    def __init__(self, config: StageConfig, spec: TokenSpec, dropout: float = 0.0):
        super().__init__(config, spec, dropout)
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

    def native_parts(self) -> NativeParts:
        return NativeParts(self.spec.quantizers, asked=self.asked)

    def batch(self, pieces: Sequence[Piece], references: Sequence[Piece] = (), ends: Sequence[bool] = ()) -> Batch:
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
        """Of a quantizer drawn for each item, in the frames behind a beginning of random length that is known whole."""
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

    @torch.inference_mode()
    def complete(
        self, coarse: list[Tensor], known: list[Tensor], noise: list[Noise], sampling: StageSampling,
        batch_size: int, progress: Progress | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """Coarse `int64 [coarse, F]` and known codes `int64 [Q, F_known]` per item -> `int64 [Q, F]`, item by item, in
        windows that each begin with up to 1 s of what is there already, one quantizer after the other."""
        spec, s, device, plans, numbers = self.spec, sampling, self.ids.weight.device, [], []
        codes = [extended(k, c.shape[1]) for c, k in zip(coarse, known, strict=True)]
        for full, c, k, n in zip(codes, coarse, known, noise, strict=True):
            full[: spec.coarse] = c
            plans.append(self._windows(k.shape[1], c.shape[1]))
            drawn = (n.numbers(3, made, end - made, spec.coarse, spec.fine) for _, made, end in plans[-1])
            numbers.append([some.view(-1, spec.fine).T for some in drawn])
        if self.native is not None:
            from audiolm_cli.native.fill import Filling, fill

            items = zip((full.numpy().astype(np.int32) for full in codes), plans, numbers, strict=True)
            return fill(
                [
                    Filling(self.native, full, spec.coarse, plan, [n.numpy() for n in some], s)
                    for full, plan, some in items
                ],
                progress,
            )
        for i, plan in enumerate(plans):
            codes[i] = codes[i].to(device)
            for number, ((first, made, end), some) in enumerate(zip(plan, numbers[i], strict=True)):
                codes[i][spec.coarse :, made:end] = -1
                for q, uniform in enumerate(some.to(device), spec.coarse):
                    hidden = self(codes[i][None, :, first:end], torch.tensor([q], device=device))[0, made - first :]
                    logits = self.code_logits(hidden, q)
                    codes[i][q, made:end] = sample(logits, uniform.contiguous(), s.temperature, s.top_k, s.top_p)
                    if progress:
                        progress(settled(plan, number))
        return [full.cpu() for full in codes]

    def _windows(self, known: int, frames: int) -> list[Window]:
        """They grow, so that the first comes soon, and overlap: the last frames of each are made anew in the next one,
        which sees what follows them."""
        size, context = fine_window(self.spec, self.config.window_seconds)
        held = min(whole_frames(self.spec, HELD_SECONDS), (size - context) // 2)
        new, made, found = max(whole_frames(self.spec, FIRST_SECONDS), 2 * held), known, []
        while made < frames:
            end = made + min(new, size - context)
            found.append((max(0, made - context), made, min(frames, end)))
            new, made = 2 * new, end - held if end < frames else frames
        return found
