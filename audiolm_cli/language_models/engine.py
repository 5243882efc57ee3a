"""Prefill and decode of one model, batched: token prefixes in, token continuations out. It knows nothing of audio.

A model with native weights (of a loaded bundle, on a CPU) is decoded by the native kernel, see `native/decode.py`. All
below is torch's way, for GPUs, for other models, and where no kernel is compiled.

Results do not depend on what else is in the batch: every item is prefilled alone, caches are right-padded, noise
belongs to the item, and rows are padded to where the last bit of their products no longer depends on their number.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from audiolm_cli.language_models.sampling import StageSampling
from audiolm_cli.language_models.tokens import Item, until_stop
from audiolm_cli.language_models.transformer import Autoregressive, KVCache, Linear
from audiolm_cli.processor import row_block

# Attention reads the cache in multiples of this: what others in the batch add behind an item's own end must not change
# how sums are grouped. torch's CPU kernel takes keys in blocks of 512, of which float32 products need whole ones.
CACHE_STEP = {torch.float32: 512, torch.bfloat16: 64}
STEPS = 16  # made between two reports
GRAPH_STEP = 512  # the same where CUDA graphs read it: there is one for each such length


class Making(Protocol):
    """Items that are being made, step by step."""

    def advance(self, steps: int) -> int:
        """Makes up to `steps` more steps of every item; how many ids that were, 0 when all are done."""

    def ids(self, number: int) -> Tensor:
        """What there is of an item, `int64 [steps]` or `[steps, Q]`: up to its `stop` and with it."""

    def inform(self, number: int, item: Item) -> None:
        """Tells what an item's `fields` say now of what is still to be made; its ids and their number stay."""

    def shorten(self, number: int, steps: int) -> None:
        """Lets an item end after so many steps, no fewer than there are."""

    def close(self) -> None:
        """Gives back what it holds."""


def start(model: Autoregressive, items: list[Item], sampling: StageSampling, batch_size: int) -> Making:
    """Begins to make up to `batch_size` items; whoever does so closes it."""
    if len(items) > batch_size:
        raise ValueError("there are more items than a batch has")
    if model.native is not None:
        from audiolm_cli.native import decode

        return decode.Sessions(model.native, items, sampling)
    return Steps(model, items, sampling, batch_size)


def generate(
    model: Autoregressive,
    items: list[Item],
    sampling: StageSampling,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """The generated ids of each item, `int64 [unknown]` or `[unknown, Q]`, or up to its `stop`; `progress` is told how
    many tokens have been made."""
    results: list[Tensor] = []
    for first in range(0, len(items), batch_size):
        batch = items[first : first + batch_size]
        with contextlib.closing(start(model, batch, sampling, batch_size)) as making:
            while made := making.advance(STEPS):
                if progress:
                    progress(made)
            results += [making.ids(number) for number in range(len(batch))]
    return results


class Steps:
    """Items made by torch."""

    @torch.inference_mode()
    def __init__(self, model: Autoregressive, items: list[Item], sampling: StageSampling, batch_size: int):
        weight = model.ids.weight
        self.model, self.items = model, items
        self.wanted = [len(item.uniform) for item in items]
        self.low, self.size = max((item.low for item in items), key=len), items[0].size
        if any(item.size != self.size or item.low != self.low[: len(item.low)] for item in items):
            raise ValueError("the items of a batch must draw from the same ranges of ids")
        self.graphs = use_graphs(weight.device)
        if not any(item.guides for item in items):
            sampling = replace(sampling, guidance=0.0)
        self.sampling, self.done = sampling, 0
        self.guides = len(sampling.shares) if sampling.guidance else 0
        self.rows = batch_size if self.graphs else _rows(model, len(items), 1 + self.guides, self.size, batch_size)
        filled = {slot: item for number, item in enumerate(items) for slot, item in self._branches(number, item)}
        self.known = [item.sequence.known for item in filled.values()]
        slots, longest = (1 + self.guides) * self.rows, max(self.known) + max(self.wanted)
        self.batch = _workspace(model, slots, longest, items[0].uniform, self.graphs)
        prefixes: dict[bytes, int] = {}
        for slot, item in sorted(filled.items()):
            self.batch.fill(slot, item, like=prefixes.setdefault(_prefix(item), slot))

    def _branches(self, number: int, item: Item) -> Iterator[tuple[int, Item]]:
        """An item and its guides, each with its slot; where it has none, its own sequence leads nowhere."""
        yield number, item
        for branch in range(self.guides):
            less = [*item.guides, *[item.sequence] * self.guides][branch]
            yield (1 + branch) * self.rows + number, replace(item, sequence=less)

    @torch.inference_mode()
    def advance(self, steps: int) -> int:
        last, per_step, made = max(self.wanted), self.items[0].uniform[0].numel() if max(self.wanted) else 0, 0
        width = len(set(self.low)) if self.graphs else 1  # with graphs a frame's whole set of quantizers runs together
        end = min(last, self.done + _round_up(steps, width))
        while self.done < end and not self._all_stopped():
            n = self.done
            if self.graphs:
                self.batch.replay(max(self.known) + n, self.low[n : n + width], self.size, self.sampling)
            else:
                now = slice(None), n
                ids = self.batch.draw(now, self.low[n], self.size, self.sampling)
                if n + 1 < last:
                    self.batch.step(ids, now, max(self.known) + n, alike=len(set(self.known)) == 1)
            self.done += width
            made += sum(min(width, max(0, wanted - n)) for wanted in self.wanted) * per_step
        return made

    def _all_stopped(self) -> bool:
        """Whether every item has met its stop; looked at every 16 steps, since it waits for the device."""
        if self.done % 16 or not self.done or any(item.stop is None for item in self.items):
            return False
        stops = self.batch.made.new_tensor([item.stop for item in self.items])
        return bool((self.batch.made[: len(self.items), : self.done] == stops[:, None]).any(1).all())

    def ids(self, number: int) -> Tensor:
        made = self.batch.made[number, : min(self.done, self.wanted[number])].cpu()
        return until_stop(self.items[number], made)

    @torch.inference_mode()
    def inform(self, number: int, item: Item) -> None:
        for slot, branch in self._branches(number, item):
            self.batch.inform(slot, branch)

    def shorten(self, number: int, steps: int) -> None:
        self.wanted[number] = steps

    def close(self) -> None:
        if self.graphs:  # they are the buffers' own
            self.model.__dict__["workspace"] = self.batch.key, self.batch


class _Batch:
    """What decoding reads and writes, in buffers that keep their places, so that CUDA graphs can hold the steps."""

    def __init__(self, model: Autoregressive, slots: int, length: int, codes: torch.Size):
        weight = model.ids.weight
        self.model, self.device = model, weight.device
        self.cache = KVCache.allocate(model, slots, length)
        self.hidden = weight.new_zeros(slots, model.config.width)
        self.features = weight.new_zeros(slots, length, model.feature_width)
        self.rotation = [weight.new_zeros(slots, length, 1, 1, model.config.head_width) for _ in "cs"]
        self.bias = weight.new_full((slots, length), -torch.inf)
        self.uniform = torch.full((slots, length, *codes), 0.5, device=self.device)
        self.made = torch.zeros(slots, length, *codes, dtype=torch.int64, device=self.device)
        self.rows = torch.arange(slots, device=self.device)
        self.steps, self.lengths = torch.zeros_like(self.rows), torch.zeros_like(self.rows)
        self.zero = weight.new_zeros(())
        self.recorded: object = None  # what the graphs were captured for
        self.graphs: dict[int, Callable[[], None] | None] = {}  # by how much of the cache they read
        self.key: object = None

    def fill(self, slot: int, item: Item, like: int) -> None:
        """Prefills an item, or copies another slot `like` it; what an earlier one left behind its end is hidden."""
        prefix, device, model = item.sequence.known, self.device, self.model
        ids, fields = item.sequence.ids[None, :prefix].to(device), item.sequence.fields[None].to(device)
        features, rotation = model.features(fields), model.rotation(fields[..., 1])
        if like == slot:
            cosine, sine = (part[:, :, :prefix] for part in rotation)
            self.hidden[slot] = model.prefill(ids, features[:, :prefix], (cosine, sine), self.cache, slot)[0]
        else:
            self.hidden[slot] = self.hidden[like]
            for part in (self.cache.keys, self.cache.values):
                part[:, slot, :, :prefix] = part[:, like, :, :prefix]
        wanted = fields.shape[1] - prefix
        self.features[slot, :wanted] = features[0, prefix:]
        for buffer, part in zip(self.rotation, rotation, strict=True):
            buffer[slot, :wanted, 0, 0] = part[0, 0, prefix:]
        self.uniform[slot, :wanted] = item.uniform.to(device)
        self.bias[slot] = -torch.inf
        self.bias[slot, :prefix] = 0
        self.lengths[slot], self.steps[slot] = prefix, 0

    def inform(self, slot: int, item: Item) -> None:
        """Features of what is still unknown of an item anew; of all at once, as before, so that their bits stay."""
        features = self.model.features(item.sequence.fields[None].to(self.device))[0, item.sequence.known :]
        self.features[slot, : len(features)] = features

    def draw(self, now: Any, low: int, size: int, sampling: StageSampling) -> Tensor:
        """The ids of a step; `now` is its index in buffers `[slots, steps]`."""
        ids = self.model.draw(self.hidden, self.uniform[now], low, size, sampling)
        self.made[now] = ids
        return ids

    def step(self, ids: Tensor, now: Any, longest: int, alike: bool = False) -> None:
        """From a step's ids to the next hidden states. No item is longer than `longest` before it, or all are exactly
        that long: a plain index costs less than a tensor of them."""
        row, place = (slice(None), longest) if alike else (self.rows, self.lengths)
        self.bias[row, place] = self.zero
        read = _round_up(longest + 1, CACHE_STEP[self.hidden.dtype])
        cosine, sine = (part[now] for part in self.rotation)
        bias, where = self.bias[:, None, None, :read], (row, slice(None), place)
        self.hidden.copy_(self.model.step(ids, self.features[now], (cosine, sine), self.cache, where, read, bias))
        self.lengths += 1

    def replay(self, longest: int, low: list[int], size: int, sampling: StageSampling) -> None:
        """As many steps as `low` has, as one CUDA graph, captured when the same are wanted for the second time: kernels
        must have been loaded by then."""

        def steps() -> None:
            now = self.rows, self.steps
            for one in low:
                self.step(self.draw(now, one, size, sampling), now, read - 1)
                self.steps += 1

        read = min(_round_up(longest + len(low), GRAPH_STEP), self.bias.shape[1])
        if self.recorded != (low, size, sampling):
            self.recorded = low, size, sampling
            self.graphs.clear()
        if read not in self.graphs:
            self.graphs[read] = None
            steps()
            return
        graph = self.graphs[read] = self.graphs[read] or _captured(steps, self.device)
        graph()


def _prefix(item: Item) -> bytes:
    sequence = item.sequence
    return b"".join(part[: sequence.known].numpy().tobytes() for part in (sequence.ids, sequence.fields))


def _rows(model: Autoregressive, items: int, branches: int, size: int, batch_size: int) -> int:
    """Rows that each branch of a batch has: as few as keep its products free of what else is there."""
    if branches * batch_size == 1:
        return 1  # there never is another
    weight = model.ids.weight
    layers = (layer for part in model.stepped() for layer in part.modules() if isinstance(layer, Linear))
    shapes = {(model.config.width, size), *((layer.in_features, layer.out_features) for layer in layers)}
    on_cpu, most = weight.device.type == "cpu", branches * batch_size
    block = row_block(shapes, weight.dtype, model.packed, most) if on_cpu else None
    return _round_up(items, block // math.gcd(block, branches)) if block else batch_size


def use_graphs(device: torch.device) -> bool:
    """Whether steps run as CUDA graphs; AUDIOLM_CUDA_GRAPHS=0 turns them off."""
    return device.type == "cuda" and os.environ.get("AUDIOLM_CUDA_GRAPHS", "1") != "0"


def _captured(steps: Callable[[], None], device: torch.device) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
        steps()
    return graph.replay  # type: ignore[no-any-return]


def _workspace(model: Autoregressive, slots: int, length: int, uniform: Tensor, kept: bool) -> _Batch:
    """Buffers for sequences of up to that length; a model's last ones are `kept`, with their graphs, while nobody has
    them."""
    codes, weight = uniform.shape[1:], model.ids.weight
    if not kept:
        return _Batch(model, slots, _round_up(length, CACHE_STEP[weight.dtype]), codes)
    key = slots, codes, weight.dtype, weight.device, weight.data_ptr()
    found, batch = model.__dict__.pop("workspace", (None, None))
    if found != key or batch.bias.shape[1] < length:
        batch = None  # before the new one is there
        batch = _Batch(model, slots, _round_up(length, GRAPH_STEP), codes)
    batch.key = key
    batch.steps.zero_()
    batch.lengths.zero_()
    return batch


def _round_up(length: int, step: int) -> int:
    return -(-length // step) * step
