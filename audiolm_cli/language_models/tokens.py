"""Tokens as people think of them, and as models read them: ids, flat sequences, and the windows of long outputs.

A flat sequence is `ids int64 [N]` and `fields int64 [N, 2 + C]`: stream, position, and the ids of C context tokens;
each kind of stage builds its own. Flattening goes frame by frame, quantizer by quantizer. Special ids lie behind all
code ids, so that no two meanings share an id.
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
Piece = tuple[Tensor, Tensor]  # semantic tokens `int64 [S]` and codes `int64 [Q, F]`, F = S * frames_per_semantic
FINE_CONTEXT_SECONDS = 1.0  # of what is there already in front of what stage 3 makes


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
        """Stands between the conditioning tokens and the codes of stages 2 and 3."""
        return self.begin + 3

    @property
    def size(self) -> int:
        return self.begin + 4

    @property
    def lows(self) -> list[int]:
        """First ids of what the tokens that the stage makes are drawn from, in turn."""
        made = {"semantic": (0, 0), "coarse": (0, self.spec.coarse), "fine": (self.spec.coarse, self.spec.quantizers)}
        return [self.code(q) for q in range(*made[self.stage])] or [0]

    @property
    def choices(self) -> int:
        """Ids that each of these is drawn from."""
        return self.spec.semantic_vocabulary if self.stage == "semantic" else self.spec.codebook_size


@dataclass(frozen=True)
class TokenSequence:
    """`ids int64 [N]` or `[N, Q]`, `fields int64 [N, 2 + C]`. Behind the known ones, ids are -1: to be generated."""

    ids: Tensor
    fields: Tensor

    @functools.cached_property
    def known(self) -> int:
        """Positions before the first one to be generated."""
        unknown = (self.ids.view(len(self.ids), -1)[:, 0] < 0).nonzero()
        return int(unknown[0]) if len(unknown) else len(self.ids)


@dataclass(frozen=True)
class Item:
    """One sequence for the engine to finish: its unknown ids are a tail, step n of which comes from ids `low[n]` to
    `low[n] + size`, drawn with `uniform[n]`; items that are made together share these ranges as far as they both go.
    `stop`, if any, is an id (within the range) behind which nothing needs to be made; only where a step is one token.
    `guides` are what guidance leads away from: sequences with the same unknown tail behind less, no more of them than
    the sampling has shares."""

    sequence: TokenSequence
    low: list[int]
    size: int
    uniform: Tensor  # float32 [unknown] or [unknown, Q]
    stop: int | None = None
    guides: tuple[TokenSequence, ...] = ()


def until_stop(item: Item, ids: Tensor) -> Tensor:
    """Ids up to the item's `stop` and with it."""
    if item.stop is None:
        return ids
    stops = (ids == item.stop).nonzero()
    return ids[: int(stops[0]) + 1] if len(stops) else ids


@dataclass(frozen=True)
class Batch:
    """Sequences of one length: ids `int64 [B, N]` or `[B, N, Q]`, fields `int64 [B, N, 2 + C]`; the last `targets`
    positions count. Of the kind `parallel` ids are codes `[B, Q, F]`, without fields."""

    ids: Tensor
    fields: Tensor
    targets: int

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence], targets: int) -> Batch:
        return cls(torch.stack([s.ids for s in sequences]), torch.stack([s.fields for s in sequences]), targets)

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids.to(device), self.fields.to(device), self.targets)


@dataclass(frozen=True)
class Filling:
    """A window of stage 3: codes `int64 [Q, F]`, the fine ones of its last frames -1, a number for each of these,
    `float32 [frames * fine]` in flattened order, and how many of these frames will stay as they are made."""

    codes: Tensor
    uniform: Tensor
    kept: int

    @property
    def known(self) -> int:
        """Frames that are known whole."""
        unknown = (self.codes[-1] < 0).nonzero()
        return int(unknown[0]) if len(unknown) else self.codes.shape[1]


def flatten(codes: Tensor) -> Tensor:
    """Codes `[Q, F]` -> `[F * Q]`, frame by frame, quantizer by quantizer."""
    return codes.T.reshape(-1)


def unflatten(flat: Tensor, quantizers: int) -> Tensor:
    """The inverse of `flatten`: `[F * Q]` -> `[Q, F]`."""
    return flat.view(-1, quantizers).T


Window = tuple[int, int, int]  # first, known until, end, in steps of whoever asks


def windows(total: float, start: int, window: int, kept: int, whole: int) -> Iterator[Window]:
    """How an output longer than the window is made: `(first, known_until, end)` in steps of the caller's unit; without
    end where `total` is infinite.

    [0, start) is known. A window that begins at 0 is `whole` long; a later one begins `kept` steps before what is known
    by then ends, and is `window` long. Windows do not depend on the total, but for the end of the last.
    """
    known, first = start, 0 if start <= whole // 2 else start - kept
    while known < total:
        end = first + (window if first else whole)
        yield first, known, int(min(total, end))
        known, first = end, max(0, end - kept)


def fine_window(spec: TokenSpec, seconds: float) -> tuple[int, int]:
    """Frames that a stage 3 with windows of `seconds` works on at once, and how many of them are there already."""
    size = frames(spec, seconds)
    return size, min(frames(spec, FINE_CONTEXT_SECONDS), size // 2)


class Line:
    """Tokens `[..., n]` that grow at their end, of which those are dropped that nobody needs any more."""

    def __init__(self, known: Tensor):
        self.tail, self.begin, self.head = known, 0, known[..., :0]
        self.room, self.holds = 0, dict[str, int]()

    def __len__(self) -> int:
        return self.begin + self.tail.shape[-1]

    def append(self, more: Tensor) -> None:
        if len(self) < self.room:
            self.head = torch.cat([self.head, more[..., : self.room - len(self)]], -1)
        self.tail = torch.cat([self.tail, more], -1)

    def cut(self, first: int, end: int) -> Tensor:
        """Those from one place to before another."""
        if first >= self.begin:
            return self.tail[..., first - self.begin : max(0, end - self.begin)]
        if end > self.head.shape[-1]:
            raise IndexError("these tokens are gone")
        return self.head[..., first:end]

    def keep(self, count: int) -> None:
        """Never drops the first so many; before any is dropped."""
        self.head, self.room = self.tail[..., :count], count

    def hold(self, who: str, place: int) -> None:
        """Says that somebody needs nothing before a place any more; who will need anything has said so of place 0."""
        self.holds[who] = place
        least = min(self.holds.values())
        if least > self.begin:
            self.tail, self.begin = self.tail[..., least - self.begin :].clone(), least


def frames(spec: TokenSpec, seconds: float) -> int:
    return round(seconds * spec.sample_rate / spec.samples_per_frame)
