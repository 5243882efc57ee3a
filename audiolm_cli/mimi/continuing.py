"""What a decoder of codes feeds the engine and takes back: codes in, more codes out, for many items at once.

A sequence is the header and codes, frame by frame. What is longer than the context is made in windows that slide: an
anchor, the part of the prompt that is fullest of speech, stays in front of each, so that the voice does not drift, and
behind it half of what is left is what was made last. So the cost is linear.
"""

from __future__ import annotations

import torch
from torch import Tensor

from audiolm_cli.config import StageSampling
from audiolm_cli.language_models import engine
from audiolm_cli.language_models.sampling import Noise, Progress
from audiolm_cli.language_models.tokens import Item, TokenSequence, extended, flatten, rounds, unflatten, windows
from audiolm_cli.mimi.decoder import CodeDecoder
from audiolm_cli.public.layout import CODEBOOK_SIZE

STAGE = 1  # in the keys of random numbers
ANCHOR_SHARE = 4  # of a window at most a quarter


def continue_codes(
    model: CodeDecoder, known: list[Tensor], totals: list[int], anchors: list[tuple[int, int]], window: int,
    noise: list[Noise], sampling: StageSampling, batch_size: int, progress: Progress | None = None,
) -> list[Tensor]:  # fmt: skip
    """Known codes `int64 [Q, F_known]` per item -> `int64 [Q, totals[i]]`.

    window: frames that the model hears at once. anchors: first frame and end of what stays in front of later windows.
    """
    quantizers = model.quantizers
    codes = [extended(k, total) for k, total in zip(known, totals, strict=True)]
    plans = []
    for k, total, (begin, end) in zip(known, totals, anchors, strict=True):
        behind = window - (end - begin)
        plans.append(windows(total, k.shape[1], behind, behind // 2, window))
    for active in rounds(plans):
        items = []
        for i, (first, made, end) in active:
            anchor = codes[i][:, anchors[i][0] : min(anchors[i][1], first)]
            numbers = noise[i].numbers(STAGE, made, end - made, 0, quantizers)
            items.append(item(model, torch.cat([anchor, codes[i][:, first:end]], 1), numbers))
        for (i, (_, made, end)), ids in zip(
            active, engine.generate(model, items, sampling, batch_size, progress), strict=True
        ):
            codes[i][:, made:end] = unflatten(ids % CODEBOOK_SIZE, quantizers)
    return codes


def item(model: CodeDecoder, codes: Tensor, uniform: Tensor) -> Item:
    """What the engine is to make: the unknown ones of codes `int64 [Q, F]`, -1, behind the known."""
    lows = CODEBOOK_SIZE * torch.arange(model.quantizers)
    behind = flatten(torch.where(codes < 0, codes, codes + lows[:, None]))
    header = torch.arange(model.quantizers * CODEBOOK_SIZE, len(model.ids.weight))
    ids = torch.cat([header, behind])
    places = torch.arange(len(ids))
    sequence = TokenSequence(ids, torch.stack([torch.zeros_like(places), places], 1))
    return Item(sequence, lows.tolist() * (len(uniform) // model.quantizers), CODEBOOK_SIZE, uniform)
