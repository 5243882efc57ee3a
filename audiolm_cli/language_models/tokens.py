"""The token layouts of the three stages: pure functions between tokens as people think of them and flat sequences.

A flat sequence is `ids int64 [N]` and `fields int64 [N, 2 + C]`: stream, position, and the ids of C context tokens.
Flattening goes frame by frame, quantizer by quantizer. Special ids lie behind all code ids, so that no two meanings
share an id. In the layout `aligned` the position is the time in codec frames, shared by all streams, and the context of
position n describes what stands at n + 1, which is what position n predicts; in `plain` the position is n. In
`frames` a step is a whole frame: ids `[N, Q]` are codes as they are, and there is no prefix of semantic tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from audiolm_cli.config import Layout, TokenSpec

StageName = Literal["semantic", "coarse", "fine"]
CONTEXT_OFFSETS = (-1, 0, 1)  # semantic tokens around a coarse frame, in tokens
FRAME_OFFSETS = (-8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8)  # the same in the layout `frames`, in frames
FRAME_SPECIALS = 2  # ids behind the codes of every quantizer in the layout `frames`: begin, gap
GAP_SECONDS = 0.5  # distance on the clock between a reference and what follows it


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
    def streams(self) -> int:
        """Specials, then semantic tokens, then each quantizer; the last ones again for a reference."""
        return 1 + 2 * (1 + self.quantizers)

    @property
    def context_slots(self) -> int:
        """Context tokens that each position of the aligned layout carries."""
        return {"semantic": 0, "coarse": len(CONTEXT_OFFSETS), "fine": self.spec.coarse}[self.stage]

    @property
    def context_size(self) -> int:
        """Ids of context tokens, slot by slot; the last one means that there is none."""
        return self.context_slots * self._context_values + 1

    @property
    def _context_values(self) -> int:
        return self.spec.semantic_vocabulary if self.stage == "coarse" else self.spec.codebook_size


@dataclass(frozen=True)
class Sequence:
    """`ids int64 [N]` or `[N, Q]`, `fields int64 [N, 2 + C]`. Behind the known ones, ids are -1: to be generated."""

    ids: Tensor
    fields: Tensor

    @functools.cached_property
    def known(self) -> int:
        """Positions before the first one to be generated."""
        unknown = (self.ids.view(len(self.ids), -1)[:, 0] < 0).nonzero()
        return int(unknown[0]) if len(unknown) else len(self.ids)


def flatten(codes: Tensor) -> Tensor:
    """Codes `[Q, F]` -> `[F * Q]`, frame by frame, quantizer by quantizer."""
    return codes.T.reshape(-1)


def unflatten(flat: Tensor, quantizers: int) -> Tensor:
    """The inverse of `flatten`: `[F * Q]` -> `[Q, F]`."""
    return flat.view(-1, quantizers).T


def semantic_sequence(spec: TokenSpec, layout: Layout, tokens: Tensor) -> Sequence:
    """Stage 1: `<begin> s s s ...`; tokens `int64 [S]`, -1 where unknown."""
    vocabulary = Vocabulary("semantic", spec)
    builder = _Builder(vocabulary, layout)
    builder.special(vocabulary.begin, 0)
    builder.semantic(tokens, start=0, reference=False)
    return builder.build()


def coarse_sequence(
    spec: TokenSpec, layout: Layout, semantic: Tensor, codes: Tensor, reference: tuple[Tensor, Tensor] | None = None
) -> Sequence:
    """Stage 2: `<begin> [reference] <gap> semantic | <acoustic> [reference codes] <gap> codes`.

    semantic `int64 [S]`; codes `int64 [coarse, F]`, -1 where unknown, F at most S * frames_per_semantic; the reference
    is a pair of the same kinds, fully known. In the layout `frames`: `<begin> [reference codes] <gap> codes`.
    """
    if layout == "frames":
        return _frame_sequence(spec, semantic, codes, reference)
    vocabulary = Vocabulary("coarse", spec)
    builder = _Builder(vocabulary, layout)
    start = 0
    builder.special(vocabulary.begin, 0)
    if reference is not None:
        builder.semantic(reference[0], 0, reference=True)
        start = _behind(spec, reference[1])
        builder.special(vocabulary.gap, start)
    builder.semantic(semantic, start, reference=False)
    builder.special(vocabulary.acoustic, 0 if reference is not None else start)
    if reference is not None:
        builder.codes(reference[1], 0, 0, reference=True, context=_around(spec, reference[0], reference[1].shape[1]))
        builder.special(vocabulary.gap, start)
    builder.codes(codes, 0, start, reference=False, context=_around(spec, semantic, codes.shape[1]))
    return builder.build()


def _frame_sequence(
    spec: TokenSpec, semantic: Tensor, codes: Tensor, reference: tuple[Tensor, Tensor] | None
) -> Sequence:
    def special(number: int, time: int) -> tuple[Tensor, Tensor, Tensor]:
        none = torch.full((1, len(FRAME_OFFSETS)), spec.semantic_vocabulary)
        return torch.full((1, spec.coarse), spec.codebook_size + number), torch.tensor([time]), none

    def frames(semantic: Tensor, codes: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        times = torch.arange(codes.shape[1])
        at = (times[:, None] + torch.tensor(FRAME_OFFSETS)) // spec.frames_per_semantic
        inside = (at >= 0) & (at < len(semantic))
        around = torch.where(inside, semantic[at.clamp(0, len(semantic) - 1)], spec.semantic_vocabulary)
        return codes.T, start + 1 + times, around

    parts, start = [special(0, 0)], 0
    if reference is not None:
        start = _behind(spec, reference[1])
        parts += [frames(*reference, 0), special(1, start)]
    parts.append(frames(semantic, codes, start))
    ids, times, context = (torch.cat(column) for column in zip(*parts, strict=True))
    context = torch.cat([context[1:], context[-1:]])
    return Sequence(ids, torch.cat([torch.zeros_like(times)[:, None], times[:, None], context], 1))


def _behind(spec: TokenSpec, codes: Tensor) -> int:
    """Where the clock stands behind a reference and the gap, in frames."""
    return codes.shape[1] + round(GAP_SECONDS * spec.sample_rate / spec.samples_per_frame)


def fine_sequence(spec: TokenSpec, layout: Layout, codes: Tensor) -> Sequence:
    """Stage 3: `<begin> coarse codes | <acoustic> fine codes`; codes `int64 [quantizers, F]`, fine -1 where unknown."""
    vocabulary = Vocabulary("fine", spec)
    builder = _Builder(vocabulary, layout)
    coarse, fine = codes[: spec.coarse], codes[spec.coarse :]
    builder.special(vocabulary.begin, 0)
    builder.codes(coarse, 0, 0, reference=False, context=None)
    builder.special(vocabulary.acoustic, 0)
    slots = torch.arange(spec.coarse) * spec.codebook_size
    builder.codes(fine, spec.coarse, 0, reference=False, context=coarse.T + slots)
    return builder.build()


def _around(spec: TokenSpec, semantic: Tensor, frames: int) -> Tensor:
    """Context of coarse frames: ids of the semantic tokens around each, `int64 [F, slots]`."""
    none = len(CONTEXT_OFFSETS) * spec.semantic_vocabulary
    columns = []
    for slot, offset in enumerate(CONTEXT_OFFSETS):
        at = torch.arange(frames) // spec.frames_per_semantic + offset
        inside = (at >= 0) & (at < len(semantic))
        values = semantic[at.clamp(0, len(semantic) - 1)] + slot * spec.semantic_vocabulary
        columns.append(torch.where(inside, values, none))
    return torch.stack(columns, 1)


class _Builder:
    """Collects stretches of a sequence; `build` puts the context where it is needed: one position earlier."""

    def __init__(self, vocabulary: Vocabulary, layout: Layout):
        self.vocabulary, self.layout = vocabulary, layout
        self.parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # ids, streams, times, contexts

    def special(self, token: int, time: int) -> None:
        self._add(torch.tensor([token]), torch.tensor([0]), torch.tensor([time]), None)

    def semantic(self, tokens: Tensor, start: int, reference: bool) -> None:
        times = start + torch.arange(len(tokens)) * self.vocabulary.spec.frames_per_semantic
        stream = 1 + reference * (1 + self.vocabulary.quantizers)
        self._add(tokens, torch.full_like(tokens, stream), times, None)

    def codes(self, codes: Tensor, first: int, start: int, reference: bool, context: Tensor | None) -> None:
        count, frames = codes.shape
        quantizer = (first + torch.arange(count)).repeat(frames)
        flat = flatten(codes)
        ids = torch.where(
            flat < 0, flat, flat + self.vocabulary.code(0) + quantizer * self.vocabulary.spec.codebook_size
        )
        streams = 2 + quantizer + reference * (1 + self.vocabulary.quantizers)
        times = start + torch.arange(frames).repeat_interleave(count)
        self._add(ids, streams, times, None if context is None else context.repeat_interleave(count, 0))

    def _add(self, ids: Tensor, streams: Tensor, times: Tensor, context: Tensor | None) -> None:
        slots = self.vocabulary.context_slots
        if context is None:
            context = torch.full((len(ids), slots), self.vocabulary.context_size - 1)
        self.parts.append((ids, streams, times, context))

    def build(self) -> Sequence:
        ids, streams, times, context = (torch.cat(column) for column in zip(*self.parts, strict=True))
        if self.layout == "plain":
            plain = torch.stack([torch.zeros_like(ids), torch.arange(len(ids))], 1)
            return Sequence(ids, plain)
        context = torch.cat([context[1:], context[-1:]])  # position n carries the context of what it predicts
        return Sequence(ids, torch.cat([torch.stack([streams, times], 1), context], 1))


Window = tuple[int, int, int]  # first, known until, end, in steps of whoever asks


def windows(total: int, start: int, window: int, kept: int, whole: int) -> list[Window]:
    """How an output longer than the window is made: `(first, known_until, end)` in steps of the caller's unit.

    [0, start) is known. A window that begins at 0 is `whole` long; a later one begins `kept` steps before what is known
    by then ends, and is `window` long.
    """
    result, known, first = [], start, 0 if start <= whole // 2 else start - kept
    while known < total:
        end = min(total, first + (window if first else whole))
        result.append((first, known, end))
        known = end
        first = max(0, end - kept)
    return result
