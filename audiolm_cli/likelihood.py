"""How likely tokens are to the three language models: what training lowers, and how a recording is told to be of a kind
that a bundle does not know."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from audiolm_cli.config import TokenSpec
from audiolm_cli.frames import FrameTransformer
from audiolm_cli.parallel import ParallelTransformer
from audiolm_cli.tokens import Sequence, StageName, Vocabulary, coarse_sequence, semantic_sequence
from audiolm_cli.transformer import Decoder, Stack, Transformer

# of speech, the piano bundle finds 0.93 strange, and of piano music, the speech bundle 0.91; with 1/4 0.89 and 0.925,
# with 1/2 0.94 and 0.88
SEMANTIC_SHARE = 1 / 3


@dataclass(frozen=True)
class Batch:
    """ids `int64 [B, N]`, fields `int64 [B, N, 2 + C]`; the last `targets` positions count. In the layout `frames` ids
    are `[B, N, Q]`; in `parallel` they are codes `[B, Q, F]` without fields."""

    ids: Tensor
    fields: Tensor
    targets: int

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids.to(device), self.fields.to(device), self.targets)


def stack(sequences: list[Sequence], stage: StageName, spec: TokenSpec, crop: int, ends: list[bool]) -> Batch:
    """Sequences of one length as a batch. In stage 1 every one gets one more target: `<end>`, or -1 (no target)."""
    ids, fields = torch.stack([s.ids for s in sequences]), torch.stack([s.fields for s in sequences])
    if stage == "semantic":
        end = Vocabulary(stage, spec).end
        last = torch.tensor([[end if e else -1] for e in ends])
        return Batch(torch.cat([ids, last], 1), torch.cat([fields, fields[:, -1:]], 1), crop + 1)
    if ids.ndim == 3:
        return Batch(ids, fields, crop * spec.frames_per_semantic)
    per_token = spec.frames_per_semantic * (spec.coarse if stage == "coarse" else spec.fine)
    return Batch(ids, fields, crop * per_token)


def token_losses(model: Stack, batch: Batch, inputs: Tensor | None = None) -> Tensor:
    """Cross entropy in nats of every target token: `float32 [B, steps, quantizers]`, in stage 1 `[B, targets]`.

    The model reads `inputs` in place of the batch's ids where they are given. In stage 1, tokens that are no targets
    have loss 0, and so have specials in the layout `frames`.
    """
    if isinstance(model, ParallelTransformer):
        return _parallel_losses(model, batch.ids)
    read = batch.ids if inputs is None else inputs
    targets = batch.ids[:, -batch.targets :]
    if isinstance(model, FrameTransformer):
        size = model.spec.codebook_size
        hidden = model(read[:, :-1], batch.fields[:, :-1])[:, -batch.targets :]
        wanted = targets.masked_fill(targets >= size, -1)
        by_quantizer = enumerate(model.code_logits(hidden, read[:, -batch.targets :]))
        return torch.stack([_cross_entropy(logits, wanted[..., q]) for q, logits in by_quantizer], -1)
    assert isinstance(model, Transformer)
    vocabulary, spec = model.vocabulary, model.spec
    hidden = model(read[:, :-1], batch.fields[:, :-1])[:, -batch.targets :]
    if vocabulary.stage == "semantic":
        return _cross_entropy(model.logits(hidden, 0, vocabulary.end + 1), targets)
    first, last = (0, spec.coarse) if vocabulary.stage == "coarse" else (spec.coarse, spec.quantizers)
    count, losses = last - first, []
    for n in range(count):
        low = vocabulary.code(first + n)
        logits = model.logits(hidden[:, n::count], low, spec.codebook_size)
        losses.append(_cross_entropy(logits, targets[:, n::count] - low))
    return torch.stack(losses, -1)


def _parallel_losses(model: ParallelTransformer, codes: Tensor) -> Tensor:
    levels = torch.arange(model.spec.quantizers, device=codes.device)[:, None]
    losses = []
    for q in range(model.spec.coarse, model.spec.quantizers):
        hidden = model(codes.masked_fill(levels >= q, -1), torch.full((len(codes),), q, device=codes.device))
        losses.append(_cross_entropy(model.code_logits(hidden, q), codes[:, q]))
    return torch.stack(losses, -1)


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Logits `[B, N, V]`, ids `[B, N]`, -1 where nothing is wanted -> nats `float32 [B, N]`, 0 there."""
    return F.cross_entropy(logits.float().transpose(1, 2), wanted, ignore_index=-1, reduction="none")


@torch.inference_mode()
def surprise(semantic_model: Transformer, coarse_model: Decoder, semantic: Tensor, codes: Tensor) -> float:
    """How strange a recording is to stages 1 and 2, in bits: of a coarse code, each semantic token's codes by
    themselves, and SEMANTIC_SHARE of those of a semantic token.

    semantic `int64 [S]`, S at least 1, codes `int64 [Q, F]`. What came before would help to predict the codes, and most
    where a sound stays as it is, whatever it is. Codes alone tell piano from speech better than speech from piano,
    semantic tokens the other way round.
    """
    spec, per, device = coarse_model.spec, coarse_model.spec.frames_per_semantic, coarse_model.ids.weight.device
    frames = codes[: spec.coarse, : len(semantic) * per].unfold(1, per, per).transpose(0, 1)  # [S, coarse, per]
    layout = coarse_model.config.layout
    pieces = [coarse_sequence(spec, layout, s[None], c) for s, c in zip(semantic, frames, strict=True)]
    code_losses = token_losses(coarse_model, stack(pieces, "coarse", spec, 1, []).to(device))
    whole = semantic_sequence(spec, semantic_model.config.layout, semantic)
    losses = token_losses(semantic_model, stack([whole], "semantic", spec, len(semantic), [False]).to(device))[:, :-1]
    return float(code_losses.mean() + SEMANTIC_SHARE * losses.mean()) / math.log(2)
