"""Token ids, the sequences that models read, the windows of long outputs, and buffers of tokens.

A sequence is `ids int64 [N]` and `fields int64 [N, 2 + C]`: stream, position, and the ids of C context tokens; each
kind of stage builds its own. Codes are flattened frame by frame, quantizer by quantizer. Special ids come after all
code ids, so no two meanings share an id.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from audiolm_cli.config import TokenSpec

StageName = Literal["semantic", "coarse", "fine"]
Segment = tuple[Tensor, Tensor]  # semantic tokens `int64 [S]` and codes `int64 [Q, F]`, F = S * frames_per_semantic
FINE_CONTEXT_SECONDS = 1.0  # of complete frames in front of those that stage 3 completes
PIECES_SECONDS = 0.5, 1.0  # of coarse codes passed on without a stage 3: the first piece, and all others


@dataclass(frozen=True)
class Vocabulary:
    """Ids of one stage: semantic tokens, then each quantizer's codes, then begin, end, gap, acoustic begin."""

    stage: StageName
    spec: TokenSpec

    @property
    def quantizers(self) -> int:
        """Quantizers whose codes occur in this stage."""
        return {"semantic": 0, "coarse": self.spec.coarse, "fine": self.spec.quantizers}[self.stage]

    @property
    def semantic(self) -> int:
        """Semantic tokens that occur in this stage."""
        return 0 if self.stage == "fine" else self.spec.semantic_vocabulary

    def code(self, quantizer: int) -> int:
        """Id of code 0 of a quantizer."""
        return self.semantic + quantizer * self.spec.codebook_size

    @property
    def begin(self) -> int:
        return self.code(self.quantizers)

    @property
    def end(self) -> int:
        return self.begin + 1

    @property
    def gap(self) -> int:
        return self.begin + 2

    @property
    def acoustic(self) -> int:
        """Separates the conditioning tokens from the codes in stages 2 and 3."""
        return self.begin + 3

    @property
    def size(self) -> int:
        return self.begin + 4

    @property
    def lows(self) -> list[int]:
        """First ids of the ranges that the stage samples its tokens from, in turn."""
        made = {"semantic": (0, 0), "coarse": (0, self.spec.coarse), "fine": (self.spec.coarse, self.spec.quantizers)}
        return [self.code(q) for q in range(*made[self.stage])] or [0]

    @property
    def choices(self) -> int:
        """Size of each of these ranges."""
        return self.spec.semantic_vocabulary if self.stage == "semantic" else self.spec.codebook_size


@dataclass(frozen=True)
class TokenSequence:
    """`ids int64 [N]` or `[N, Q]`, `fields int64 [N, 2 + C]`. Ids to be sampled are -1; they come last."""

    ids: Tensor
    fields: Tensor

    @functools.cached_property
    def known(self) -> int:
        """Positions before the first one to be sampled."""
        unknown = (self.ids.view(len(self.ids), -1)[:, 0] < 0).nonzero()
        return int(unknown[0]) if len(unknown) else len(self.ids)


@dataclass(frozen=True)
class Item:
    """One sequence for the engine to complete. Step n of its unknown tail is an id from `low[n]` to `low[n] + size`,
    sampled with `uniform[n]`; the items of a batch share these ranges as far as they go. `stop`, if any, is an id in
    the range behind which nothing is sampled; only where a step is one token. `guides`: the sequences with the same
    tail behind less conditioning, for classifier-free guidance; as many as the sampling has `guide_weights`, or
    none."""

    sequence: TokenSequence
    low: list[int]
    size: int
    uniform: Tensor  # float32 [unknown] or [unknown, Q]
    stop: int | None = None
    guides: tuple[TokenSequence, ...] = ()


def until_stop(item: Item, ids: Tensor) -> Tensor:
    """Ids up to and including the item's `stop`."""
    if item.stop is None:
        return ids
    stops = (ids == item.stop).nonzero()
    return ids[: int(stops[0]) + 1] if len(stops) else ids


@dataclass(frozen=True)
class Batch:
    """Sequences of one length: ids `int64 [B, N]` or `[B, N, Q]`, fields `int64 [B, N, 2 + C]`; losses are of the last
    `targets` positions. For the kind `parallel` ids are codes `[B, Q, F]`, without fields."""

    ids: Tensor
    fields: Tensor
    targets: int

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence], targets: int) -> Batch:
        return cls(torch.stack([s.ids for s in sequences]), torch.stack([s.fields for s in sequences]), targets)

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids.to(device), self.fields.to(device), self.targets)


@dataclass(frozen=True)
class Infill:
    """A window of stage 3: codes `int64 [Q, F]`, where the fine codes of the last frames are -1, a uniform number for
    each of these, `float32 [frames * fine]` in flattened order, and how many of these frames are `kept`."""

    codes: Tensor
    uniform: Tensor
    kept: int

    @property
    def known(self) -> int:
        """Complete frames."""
        unknown = (self.codes[-1] < 0).nonzero()
        return int(unknown[0]) if len(unknown) else self.codes.shape[1]


def flatten(codes: Tensor) -> Tensor:
    """Codes `[Q, F]` -> `[F * Q]`, frame by frame, quantizer by quantizer."""
    return codes.T.reshape(-1)


def unflatten(flat: Tensor, quantizers: int) -> Tensor:
    """The inverse of `flatten`: `[F * Q]` -> `[Q, F]`."""
    return flat.view(-1, quantizers).T


# first step that the model sees, first one to be sampled, end; in the caller's steps
Window = tuple[int, int, int]


def windows(total: float, known: int, window: int, kept: int, whole: int) -> Iterator[Window]:
    """The windows of an output longer than one; endless if `total` is infinite.

    The first `known` steps need no sampling. A window that begins at 0 is `whole` long; a later one is `window` long
    and begins `kept` steps before its first sampled one. Only the end of the last window depends on the total.
    """
    start, first = known, 0 if known <= whole // 2 else known - kept
    while start < total:
        end = first + (window if first else whole)
        yield first, start, int(min(total, end))
        start, first = end, max(0, end - kept)


def fine_window(spec: TokenSpec, seconds: float) -> tuple[int, int]:
    """Frames in a window of stage 3 of `seconds`, and how many of them are complete already."""
    size = frames(spec, seconds)
    return size, min(frames(spec, FINE_CONTEXT_SECONDS), size // 2)


def pieces(known: int, spec: TokenSpec) -> Iterator[Window]:
    """Windows of coarse codes behind `known` ones, where no stage 3 makes more of them; endless."""
    start, (first, others) = known, (max(1, frames(spec, seconds)) for seconds in PIECES_SECONDS)
    yield start, start, start + first
    while True:
        start += first if start == known else others
        yield start, start, start + others


class TokenBuffer:
    """Tokens `[..., n]` that grow at the end. Those that no reader needs any more are dropped."""

    def __init__(self, known: Tensor):
        self.tail, self.begin, self.head = known, 0, known[..., :0]
        self.pinned, self.needed = 0, dict[str, int]()

    def __len__(self) -> int:
        return self.begin + self.tail.shape[-1]

    def append(self, more: Tensor) -> None:
        if len(self) < self.pinned:
            self.head = torch.cat([self.head, more[..., : self.pinned - len(self)]], -1)
        self.tail = torch.cat([self.tail, more], -1)

    def slice(self, first: int, end: int) -> Tensor:
        """Tokens [first, end). Raises IndexError for dropped ones."""
        if first >= self.begin:
            return self.tail[..., first - self.begin : max(0, end - self.begin)]
        if end > self.head.shape[-1]:
            raise IndexError("these tokens were dropped")
        return self.head[..., first:end]

    def pin(self, count: int) -> None:
        """Keeps the first `count` tokens for good; to be called before any is dropped."""
        self.head, self.pinned = self.tail[..., :count], count

    def release(self, reader: str, place: int) -> None:
        """Tells that a reader needs no token before `place` any more. Every reader begins with place 0."""
        self.needed[reader] = place
        least = min(self.needed.values())
        if least > self.begin:
            self.tail, self.begin = self.tail[..., least - self.begin :].clone(), least


def frames(spec: TokenSpec, seconds: float) -> int:
    return round(seconds * spec.sample_rate / spec.samples_per_frame)
