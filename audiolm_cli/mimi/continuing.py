"""What a decoder of codes feeds the engine and takes back: codes in, more codes out, for many items at once.

A sequence is the header and codes, frame by frame. What is longer than the context is made in windows that slide: an
anchor, the part of the prompt that is fullest of speech, stays in front of each, so that the voice does not drift, and
behind it half of what is left is what was made last. So the cost is linear.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from audiolm_cli.language_models.stages import BatchedSource, StageContext
from audiolm_cli.language_models.tokens import Item, TokenSequence, flatten, unflatten, windows
from audiolm_cli.mimi.decoder import CodeDecoder
from audiolm_cli.public.layout import CODEBOOK_SIZE

STAGE = 1  # in the keys of random numbers
ANCHOR_SHARE = 4  # of a window at most a quarter


class CodeStage(BatchedSource):
    """Continues codes `int64 [Q, F_known]` up to `totals`.

    window: frames that the model hears at once. anchors: first frame and end of what stays in front of later windows.
    """

    model: CodeDecoder

    def __init__(
        self, model: CodeDecoder, known: Sequence[Tensor], totals: Sequence[float], anchors: Sequence[tuple[int, int]],
        window: int, context: StageContext,
    ) -> None:  # fmt: skip
        super().__init__(model, known, context)
        self.totals, self.anchors, self.per_token = list(totals), anchors, model.quantizers
        for buffer, (begin, end) in zip(self.buffers, anchors, strict=True):
            buffer.pin(end)
            behind = window - (end - begin)
            self.plans.append(windows(math.inf, len(buffer), behind, behind // 2, window))

    def _item(self, number: int) -> Item:
        first, made, end = self.windows[number]
        buffer, (begin, stop) = self.buffers[number], self.anchors[number]
        known = torch.cat([buffer.slice(begin, min(stop, first)), buffer.slice(first, made)], 1)
        codes = torch.cat([known, known.new_full((len(known), end - made), -1)], 1)
        return item(self.model, codes, self.context.noise[number].numbers(STAGE, made, end - made, 0, len(codes)))

    def _collect(self) -> None:
        assert self.generation is not None
        for place, (i, (_, made, end)) in enumerate(self.windows.items()):
            if len(self.buffers[i]) < end:
                codes = unflatten(self.generation.ids(place) % CODEBOOK_SIZE, self.model.quantizers)
                self.buffers[i].append(codes[:, len(self.buffers[i]) - made :])


def item(model: CodeDecoder, codes: Tensor, uniform: Tensor) -> Item:
    """What the engine is to make: the unknown ones of codes `int64 [Q, F]`, -1, behind the known."""
    lows = CODEBOOK_SIZE * torch.arange(model.quantizers)
    behind = flatten(torch.where(codes < 0, codes, codes + lows[:, None]))
    header = torch.arange(model.quantizers * CODEBOOK_SIZE, len(model.ids.weight))
    ids = torch.cat([header, behind])
    places = torch.arange(len(ids))
    sequence = TokenSequence(ids, torch.stack([torch.zeros_like(places), places], 1))
    return Item(sequence, lows.tolist() * (len(uniform) // model.quantizers), CODEBOOK_SIZE, uniform)
