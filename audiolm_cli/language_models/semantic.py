"""Stage 1: semantic tokens one by one, `<begin> s s s ... <end>`. Positions are times, in codec frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from audiolm_cli.language_models.tokens import Batch, Item, Segment, TokenSequence
from audiolm_cli.language_models.transformer import Measure, Transformer, cross_entropy


class SemanticTransformer(Transformer):
    """The model of stage 1."""

    stage = "semantic"
    streams_known = 3  # special tokens, semantic tokens, and one that is unused

    def sequence(self, tokens: Tensor) -> TokenSequence:
        """tokens: `int64 [S]`, -1 where unknown."""
        ids = torch.cat([torch.tensor([self.vocabulary.begin]), tokens])
        places = torch.arange(len(ids))
        times = (places - 1).clamp(min=0) * self.spec.frames_per_semantic
        return TokenSequence(ids, torch.stack([places.clamp(max=1), times], 1))

    def batch(self, pieces: Sequence[Segment], references: Sequence[Segment] = (), ends: Sequence[bool] = ()) -> Batch:
        whole = Batch.of([self.sequence(semantic) for semantic, _ in pieces], 0)
        last = torch.tensor([[self.vocabulary.end if end else -1] for end in ends or [False] * len(pieces)])
        fields = torch.cat([whole.fields, whole.fields[:, -1:]], 1)
        return Batch(torch.cat([whole.ids, last], 1), fields, whole.ids.shape[1])

    def ending(self, item: Item) -> Item:
        """The same, but `<end>` may be sampled."""
        return replace(item, size=self.vocabulary.end + 1, stop=self.vocabulary.end)

    def before_end(self, ids: Tensor) -> Tensor:
        """Sampled ids up to `<end>`."""
        ends = (ids >= self.vocabulary.choices).nonzero()
        return ids[: int(ends[0])] if len(ends) else ids

    def token_losses(self, batch: Batch, measure: Measure = cross_entropy) -> Tensor:
        return super().token_losses(batch, measure)[:, :-1]
