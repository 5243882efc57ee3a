"""Prefill and decode of one model, batched: token prefixes in, token continuations out. It knows nothing of audio.

Results do not depend on what else is in the batch: every item is prefilled alone, caches are right-padded, noise
belongs to the item, and linear layers see a constant number of rows where their last bit depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from audiolm_cli.tokens import Sequence
from audiolm_cli.transformer import Decoder, KVCache

# Attention reads the cache in multiples of this: what others in the batch add behind an item's own end must not change
# how sums are grouped. torch's CPU kernel takes keys in blocks of 512, of which float32 products need whole ones.
CACHE_STEP = {torch.float32: 512, torch.bfloat16: 64}
# From this width on bfloat16 products on a CPU give a row the same bits however many rows there are.
ROWS_AGREE_FROM = 128


@dataclass(frozen=True)
class Item:
    """One sequence to finish: its unknown ids are a tail, step n of which comes from ids `low[n]` to `low[n] + size`,
    drawn with `uniform[n]`; items that are made together share these ranges as far as they both go. `stop`, if any, is
    an id (within the range) that ends the item early; only where a step is one token."""

    sequence: Sequence
    low: list[int]
    size: int
    uniform: Tensor  # float32 [unknown] or [unknown, Q]
    stop: int | None = None


@torch.inference_mode()
def generate(
    model: Decoder,
    items: list[Item],
    temperature: float,
    top_k: int,
    top_p: float,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """The generated ids of each item, `int64 [up to unknown]` or `[unknown, Q]`; `progress` is told how many tokens
    have been made."""
    results: list[Tensor] = []
    for start in range(0, len(items), batch_size):
        batch = items[start : start + batch_size]
        results += _generate_batch(model, batch, (temperature, top_k, top_p), batch_size, progress)
    return results


def _generate_batch(
    model: Decoder,
    items: list[Item],
    sampling: tuple[float, int, float],
    batch_size: int,
    progress: Callable[[int], None] | None,
) -> list[Tensor]:
    weight = model.ids.weight
    padded = weight.device.type == "cpu" and (weight.dtype == torch.float32 or model.config.width < ROWS_AGREE_FROM)
    slots = batch_size if padded else len(items)
    known = [item.sequence.known for item in items]
    wanted = [len(item.sequence.ids) - k for item, k in zip(items, known, strict=True)]
    steps, device = max(wanted), weight.device
    cache_step = CACHE_STEP[weight.dtype]
    cache = KVCache.allocate(model, slots, _round_up(max(known) + steps, cache_step))
    hidden = weight.new_zeros(slots, model.config.width)
    features = weight.new_zeros(slots, steps, model.config.width)
    positions = torch.zeros(slots, steps, dtype=torch.int64, device=device)
    codes = items[0].uniform.shape[1:]  # of a step: none where it is one token
    uniform = torch.full((slots, steps, *codes), 0.5, device=device)
    lengths = torch.zeros(slots, dtype=torch.int64, device=device)
    made = torch.zeros(slots, steps, *codes, dtype=torch.int64, device=device)
    for slot, (item, prefix) in enumerate(zip(items, known, strict=True)):
        ids, fields = item.sequence.ids[None, :prefix].to(device), item.sequence.fields[None].to(device)
        own, where = model.features(fields), fields[..., 1]
        hidden[slot] = model.prefill(ids, own[:, :prefix], model.rotation(where[:, :prefix]), cache, slot)[0]
        features[slot, : wanted[slot]], positions[slot, : wanted[slot]] = own[0, prefix:], where[0, prefix:]
        uniform[slot, : wanted[slot]] = item.uniform.to(device)
        lengths[slot] = prefix
    size, low = items[0].size, max((item.low for item in items), key=len)
    if any(item.size != size or item.low != low[: len(item.low)] for item in items):
        raise ValueError("the items of a batch must draw from the same ranges of ids")
    bias = weight.new_zeros(slots, 1, 1, cache.keys.shape[3])
    places = torch.arange(bias.shape[-1], device=device)
    bias.masked_fill_((places >= lengths[:, None])[:, None, None], -torch.inf)
    last_length = max(known)
    rows_index = torch.arange(slots, device=device)
    cosine, sine = model.rotation(positions)  # [slots, 1, steps, head width]
    for n in range(steps):
        ids = model.draw(hidden, uniform[:, n], low[n], size, sampling)
        made[:, n] = ids
        if progress:
            progress(sum(n < w for w in wanted) * codes.numel())
        if n + 1 == steps or _all_stopped(items, made, n):
            break
        bias[rows_index, 0, 0, lengths] = 0
        longest = _round_up(last_length + n + 1, cache_step)
        rotation = cosine[:, :, n : n + 1], sine[:, :, n : n + 1]
        hidden = model.step(ids, features[:, n], rotation, cache, lengths, longest, bias[..., :longest])
        lengths += 1
    return [_cut(made[slot, : wanted[slot]].cpu(), item.stop) for slot, item in enumerate(items)]


def _all_stopped(items: list[Item], made: Tensor, n: int) -> bool:
    """Whether every item has met its stop; looked at every 16 steps, since it waits for the device."""
    if n % 16 or any(item.stop is None for item in items):
        return False
    stops = made.new_tensor([item.stop for item in items])
    return bool((made[: len(items), : n + 1] == stops[:, None]).any(1).all())


def _cut(ids: Tensor, stop: int | None) -> Tensor:
    if stop is None:
        return ids
    ends = (ids == stop).nonzero()
    return ids[: int(ends[0])] if len(ends) else ids


def _round_up(length: int, step: int) -> int:
    return -(-length // step) * step
