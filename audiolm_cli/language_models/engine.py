"""Batched prefill and decoding of one model: token prefixes in, token continuations out. It knows nothing of audio.

The native kernel decodes models with native weights (those of a loaded bundle, on a CPU), see `native/decode.py`. The
code below decodes with torch: on GPUs, for other models, and without a compiled kernel.

Batch invariance: an item's tokens do not depend on the rest of the batch. Every item is prefilled alone, caches are
padded on the right, random numbers belong to the item, and batches are padded to a number of rows from which on the
last bit of a product no longer depends on that number.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from audiolm_cli.language_models.layers import Linear
from audiolm_cli.language_models.sampling import StageSampling
from audiolm_cli.language_models.tokens import Item, until_stop
from audiolm_cli.language_models.transformer import Autoregressive, KVCache
from audiolm_cli.processor import row_block

# Attention reads the cache in multiples of this, so that longer items in the batch do not change how sums are grouped.
# torch's CPU kernel takes keys in blocks of 512, of which float32 products need whole ones.
CACHE_STEP = {torch.float32: 512, torch.bfloat16: 64}
Step = tuple[slice | Tensor, int | Tensor]  # an index in buffers `[slots, steps]`
STEPS = 16  # between two progress reports
GRAPH_STEP = 512  # the same for CUDA graphs: there is one graph for each length


class Generation(Protocol):
    """A batch of items that is sampled step by step."""

    def advance(self, steps: int) -> int:
        """Samples up to `steps` more steps of every item; returns the number of ids, 0 when all are done."""

    def ids(self, number: int) -> Tensor:
        """An item's ids so far, `int64 [steps]` or `[steps, Q]`, up to and including its `stop`."""

    def update_fields(self, number: int, item: Item) -> None:
        """Replaces the `fields` of an item's remaining steps; ids and number of steps stay."""

    def shorten(self, number: int, steps: int) -> None:
        """Ends an item after that many steps, at least those already sampled."""

    def heat(self, number: int, factor: float) -> None:
        """Multiplies the temperature of an item's steps to come by a factor of at least 1."""

    def close(self) -> None:
        """Frees its buffers."""


def start(model: Autoregressive, items: list[Item], sampling: StageSampling, batch_size: int) -> Generation:
    """Starts up to `batch_size` items; the caller closes the result."""
    if len(items) > batch_size:
        raise ValueError("there are more items than a batch has")
    if model.native is not None:
        from audiolm_cli.native import decode

        return decode.Sessions(model.native, items, sampling)
    return TorchGeneration(model, items, sampling, batch_size)


def generate(
    model: Autoregressive,
    items: list[Item],
    sampling: StageSampling,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """The sampled ids of each item, `int64 [unknown]` or `[unknown, Q]`, or up to its `stop`. `progress` gets the
    number of new tokens."""
    results: list[Tensor] = []
    for first in range(0, len(items), batch_size):
        batch = items[first : first + batch_size]
        with contextlib.closing(start(model, batch, sampling, batch_size)) as generation:
            while made := generation.advance(STEPS):
                if progress:
                    progress(made)
            results += [generation.ids(number) for number in range(len(batch))]
    return results


class TorchGeneration:
    """A `Generation` by torch."""

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
        self.guides = len(sampling.guide_weights) if sampling.guidance else 0
        self.rows = batch_size if self.graphs else _rows(model, len(items), 1 + self.guides, self.size, batch_size)
        filled = {slot: item for number, item in enumerate(items) for slot, item in self._branches(number, item)}
        self.known = [item.sequence.known for item in filled.values()]
        slots, longest = (1 + self.guides) * self.rows, max(self.known) + max(self.wanted)
        self.batch = _workspace(model, slots, longest, items[0].uniform, self.graphs)
        prefixes: dict[bytes, int] = {}
        for slot, item in sorted(filled.items()):
            self.batch.fill(slot, item, like=prefixes.setdefault(_prefix(item), slot))

    def _branches(self, number: int, item: Item) -> Iterator[tuple[int, Item]]:
        """An item and its guides with their slots. An item without guides is its own guide, which changes nothing."""
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
        """Whether every item has sampled its stop; checked every 16 steps, since the check waits for the device."""
        if self.done % 16 or not self.done or any(item.stop is None for item in self.items):
            return False
        stops = self.batch.made.new_tensor([item.stop for item in self.items])
        return bool((self.batch.made[: len(self.items), : self.done] == stops[:, None]).any(1).all())

    def ids(self, number: int) -> Tensor:
        made = self.batch.made[number, : min(self.done, self.wanted[number])].cpu()
        return until_stop(self.items[number], made)

    @torch.inference_mode()
    def update_fields(self, number: int, item: Item) -> None:
        for slot, branch in self._branches(number, item):
            self.batch.update_fields(slot, branch)

    def shorten(self, number: int, steps: int) -> None:
        self.wanted[number] = steps

    @torch.inference_mode()
    def heat(self, number: int, factor: float) -> None:
        self.batch.heated = True
        self.batch.heat[number] = factor

    def close(self) -> None:
        if self.graphs:  # they are the buffers' own
            self.model.__dict__["workspace"] = self.batch.key, self.batch


class _Batch:
    """The buffers of decoding. They keep their addresses, so that CUDA graphs can replay the steps."""

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
        self.heat, self.heated = torch.ones(slots, device=self.device), False  # factors of the temperature; any but 1
        self.zero = weight.new_zeros(())
        self.recorded: object = None  # what the graphs were captured for
        self.graphs: dict[int, Callable[[], None] | None] = {}  # by how much of the cache they read
        self.key: object = None

    def fill(self, slot: int, item: Item, like: int) -> None:
        """Prefills an item, or copies the slot `like` with the same prefix. The mask hides what earlier items left."""
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

    def update_fields(self, slot: int, item: Item) -> None:
        """Recomputes the features of an item's unknown steps, all in one product as in `fill`, so that bits agree."""
        features = self.model.features(item.sequence.fields[None].to(self.device))[0, item.sequence.known :]
        self.features[slot, : len(features)] = features

    def draw(self, now: Step, low: int, size: int, sampling: StageSampling) -> Tensor:
        """Samples the ids of a step; `now` is its index in buffers `[slots, steps]`."""
        heat = self.heat if self.heated else None
        ids = self.model.draw(self.hidden, self.uniform[now], low, size, sampling, heat)
        self.made[now] = ids
        return ids

    def step(self, ids: Tensor, now: Step, longest: int, alike: bool = False) -> None:
        """Turns a step's ids into the next hidden states. `longest`: the most positions of any item before the step;
        with `alike` all have exactly as many, and a plain index is cheaper than a tensor of them."""
        row, place = (slice(None), longest) if alike else (self.rows, self.lengths)
        self.bias[row, place] = self.zero
        read = _round_up(longest + 1, CACHE_STEP[self.hidden.dtype])
        cosine, sine = (part[now] for part in self.rotation)
        bias, where = self.bias[:, None, None, :read], (row, slice(None), place)
        self.hidden.copy_(self.model.step(ids, self.features[now], (cosine, sine), self.cache, where, read, bias))
        self.lengths += 1

    def replay(self, longest: int, low: list[int], size: int, sampling: StageSampling) -> None:
        """Runs as many steps as `low` has as one CUDA graph. The first time they run without a graph, since kernels
        must be loaded before the capture."""

        def steps() -> None:
            now = self.rows, self.steps
            for one in low:
                self.step(self.draw(now, one, size, sampling), now, read - 1)
                self.steps += 1

        read = min(_round_up(longest + len(low), GRAPH_STEP), self.bias.shape[1])
        if self.recorded != (low, size, sampling, self.heated):
            self.recorded = low, size, sampling, self.heated
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
    """Rows of each branch of a batch: as few as keep products independent of the other rows."""
    if branches * batch_size == 1:
        return 1  # there never is another row
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
    """Buffers for sequences of up to `length`. With `kept` a model's last buffers and graphs are used again if free."""
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
    batch.heat.fill_(1)
    batch.heated = False
    return batch


def _round_up(length: int, step: int) -> int:
    return -(-length // step) * step
