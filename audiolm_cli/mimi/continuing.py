"""The code decoder's side of the engine: codes in, more codes out, for a batch of items.

A sequence is the header and codes, frame by frame. Beyond the context it is sampled in sliding windows. Each begins
with an anchor, the part of the prompt with the most speech, so that the voice does not drift; half of the rest holds
the latest frames. So the cost is linear in the length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from audiolm_cli.language_models.pauses import Pause, PauseLimit
from audiolm_cli.language_models.stages import BatchedSource, StageContext
from audiolm_cli.language_models.tokens import Item, TokenSequence, flatten, unflatten, windows
from audiolm_cli.mimi.decoder import CodeDecoder
from audiolm_cli.public.layout import CODEBOOK_SIZE

STAGE = 1  # in the keys of random numbers
ANCHOR_SHARE = 4  # an anchor takes at most a quarter of a window


class CodeStage(BatchedSource):
    """Continues codes `int64 [Q, F_known]` up to `totals`.

    window: the model's context in frames. anchors: first frame and end of the anchor in front of later windows. pauses:
    each item's limit of them, if there is one; the first quantizer's codes tell.
    """

    model: CodeDecoder

    def __init__(
        self, model: CodeDecoder, known: Sequence[Tensor], totals: Sequence[float], anchors: Sequence[tuple[int, int]],
        window: int, context: StageContext, pauses: Sequence[PauseLimit] = (),
    ) -> None:  # fmt: skip
        super().__init__(model, known, context)
        if pauses:
            self._limit_pauses([Pause(limit, codes[0].tolist()) for limit, codes in zip(pauses, known, strict=True)])
        self.totals, self.anchors, self.per_token = list(totals), anchors, model.quantizers
        for buffer, (begin, end) in zip(self.buffers, anchors, strict=True):
            buffer.pin(end)
            behind = window - (end - begin)
            self.plans.append(windows(math.inf, len(buffer), behind, behind // 2, window))

    def _item(self, number: int) -> Item:
        first, start, end = self.windows[number]
        buffer, (begin, stop) = self.buffers[number], self.anchors[number]
        known = torch.cat([buffer.slice(begin, min(stop, first)), buffer.slice(first, start)], 1)
        codes = torch.cat([known, known.new_full((len(known), end - start), -1)], 1)
        return item(self.model, codes, self.context.noise[number].numbers(STAGE, start, end - start, 0, len(codes)))

    def _collect(self) -> None:
        assert self.generation is not None
        for place, (i, (_, start, end)) in enumerate(self.windows.items()):
            if len(self.buffers[i]) < end:
                codes = unflatten(self.generation.ids(place) % CODEBOOK_SIZE, self.model.quantizers)
                more = codes[:, len(self.buffers[i]) - start :]
                self.buffers[i].append(more)
                if self.pauses:
                    self.pauses[i].add(more[0].tolist())


def item(model: CodeDecoder, codes: Tensor, uniform: Tensor) -> Item:
    """The item for the engine: codes `int64 [Q, F]`, known ones first, those to sample -1."""
    lows = CODEBOOK_SIZE * torch.arange(model.quantizers)
    behind = flatten(torch.where(codes < 0, codes, codes + lows[:, None]))
    header = torch.arange(model.quantizers * CODEBOOK_SIZE, len(model.ids.weight))
    ids = torch.cat([header, behind])
    places = torch.arange(len(ids))
    sequence = TokenSequence(ids, torch.stack([torch.zeros_like(places), places], 1))
    return Item(sequence, lows.tolist() * (len(uniform) // model.quantizers), CODEBOOK_SIZE, uniform)
