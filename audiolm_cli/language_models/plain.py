"""The three stages as in the paper (Borsos et al., 2022, section III-B): one token per step, conditioning as a prefix,
positions that count tokens. The reference for the kinds that ship; preset `paper` uses them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from audiolm_cli.config import StageSampling
from audiolm_cli.language_models import engine
from audiolm_cli.language_models.semantic import SemanticTransformer
from audiolm_cli.language_models.tokens import (
    Batch,
    Infill,
    Segment,
    TokenSequence,
    Window,
    fine_window,
    flatten,
    unflatten,
)
from audiolm_cli.language_models.transformer import Transformer


class PlainSemantic(SemanticTransformer):
    """Stage 1."""

    streams_known = 1

    def sequence(self, tokens: Tensor) -> TokenSequence:
        return _counted(torch.tensor([self.vocabulary.begin]), tokens)


class _Codes(Transformer):
    """Predicts the codes of some quantizers."""

    def flat(self, codes: Tensor, first: int = 0) -> Tensor:
        """Codes `[Q, F]` of the quantizers from `first` on, -1 where unknown -> ids `[F * Q]`."""
        lows = torch.tensor([[self.vocabulary.code(q)] for q in range(first, first + len(codes))])
        return flatten(torch.where(codes < 0, codes, codes + lows))

    def codes(self, ids: Tensor) -> Tensor:
        """Sampled ids `[F * Q]` -> codes `[Q, F]`."""
        lows = torch.tensor(self.vocabulary.lows)
        return unflatten(ids, len(lows)) - lows[:, None]


class PlainCoarse(_Codes):
    """Stage 2: `<begin> [reference <gap>] semantic <acoustic> [reference codes <gap>] codes`."""

    stage = "coarse"
    unconditional = False
    lookahead = None  # a whole window of semantic tokens comes first

    def sequence(self, semantic: Tensor, codes: Tensor, reference: Segment | None = None) -> TokenSequence:
        """semantic: `int64 [S]`; codes: `int64 [coarse or more, F]`, -1 where unknown; the reference is such a pair,
        fully known."""
        begin, gap, acoustic = (torch.tensor([getattr(self.vocabulary, name)]) for name in ("begin", "gap", "acoustic"))
        pieces = [*([reference] if reference else []), (semantic, codes)]
        said, sound = ([p[0] for p in pieces], [self.flat(p[1][: self.spec.coarse]) for p in pieces])
        between = [gap] if reference else []
        return _counted(begin, *said[:-1], *between, said[-1], acoustic, *sound[:-1], *between, sound[-1])

    def batch(self, pieces: Sequence[Segment], references: Sequence[Segment] = (), ends: Sequence[bool] = ()) -> Batch:
        behind: Sequence[Segment | None] = references or [None] * len(pieces)
        sequences = [self.sequence(*piece, before) for piece, before in zip(pieces, behind, strict=True)]
        return Batch.of(sequences, pieces[0][1].shape[1] * self.spec.coarse)


class PlainFine(_Codes):
    """Stage 3: `<begin> coarse codes <acoustic> fine codes`."""

    stage = "fine"

    def sequence(self, codes: Tensor) -> TokenSequence:
        """codes: `int64 [Q, F]`, fine ones -1 where unknown."""
        begin, acoustic = torch.tensor([self.vocabulary.begin]), torch.tensor([self.vocabulary.acoustic])
        coarse = self.spec.coarse
        return _counted(begin, self.flat(codes[:coarse]), acoustic, self.flat(codes[coarse:], coarse))

    def batch(self, pieces: Sequence[Segment], references: Sequence[Segment] = (), ends: Sequence[bool] = ()) -> Batch:
        return Batch.of([self.sequence(codes) for _, codes in pieces], pieces[0][1].shape[1] * self.spec.fine)

    def fillings(self, known: int) -> Iterator[Window]:
        """The windows: the first begins with the known frames right before it, the others are independent."""
        size, context = fine_window(self.spec, self.config.window_seconds)
        first, start = max(0, known - context), known
        while True:
            yield first, start, first + size
            first = start = first + size

    def fill(
        self,
        fillings: list[Infill],
        sampling: StageSampling,
        batch_size: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[Tensor]:
        """Samples the fine codes of windows, `int64 [fine, F]` each."""
        items = [self.item(self.sequence(filling.codes), filling.uniform) for filling in fillings]
        return [self.codes(ids) for ids in engine.generate(self, items, sampling, batch_size, progress)]


def _counted(*parts: Tensor) -> TokenSequence:
    ids = torch.cat(parts)
    return TokenSequence(ids, torch.stack([torch.zeros_like(ids), torch.arange(len(ids))], 1))
