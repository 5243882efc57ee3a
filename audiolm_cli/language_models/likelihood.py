"""How likely tokens are to the three language models: what training lowers, what tells that a recording is of a kind
unknown to a bundle, and what tells that the bundle made it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from audiolm_cli.config import Layout, TokenSpec
from audiolm_cli.console import Progress, counted
from audiolm_cli.language_models.frames import FrameTransformer
from audiolm_cli.language_models.parallel import ParallelTransformer
from audiolm_cli.language_models.tokens import StageName, Vocabulary, coarse_sequence, fine_sequence, semantic_sequence
from audiolm_cli.language_models.transformer import Decoder, Stack, Transformer

# of speech, the piano bundle finds 0.93 strange, and of piano music, the speech bundle 0.91; with 1/4 0.89 and 0.925,
# with 1/2 0.94 and 0.88
SEMANTIC_SHARE = 1 / 3
COLDER = 0.6  # another temperature at which tokens are looked at: about that of what is made
EVIDENCE = 4  # numbers for a token

# logits `[B, N, V]`, ids `[B, N]`, -1 where nothing is wanted -> `[B, N]` or `[B, N, K]`
Measure = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """ids `int64 [B, N]`, fields `int64 [B, N, 2 + C]`; the last `targets` positions count. In the layout `frames` ids
    are `[B, N, Q]`; in `parallel` they are codes `[B, Q, F]` without fields."""

    ids: Tensor
    fields: Tensor
    targets: int

    def to(self, device: torch.device) -> Batch:
        return Batch(self.ids.to(device), self.fields.to(device), self.targets)


def batch_of(
    stage: StageName,
    layout: Layout,
    spec: TokenSpec,
    pieces: Sequence[tuple[Tensor, Tensor]],
    references: Sequence[tuple[Tensor, Tensor]] = (),
    ends: Sequence[bool] = (),
) -> Batch:
    """Pieces of one length, semantic tokens `int64 [S]` and codes `int64 [Q, F]` each, as a stage reads them. Stage 2
    reads them behind `references` of the same kind, if any. Stage 1 gets one more target, `<end>` where `ends` says so
    or -1 (no target, as by default)."""
    if layout == "parallel":
        codes = torch.stack([codes for _, codes in pieces])
        return Batch(codes, codes[:, :0], codes.shape[-1])
    sequences, coarse = [], spec.coarse
    for n, (semantic, codes) in enumerate(pieces):
        if stage == "semantic":
            sequences.append(semantic_sequence(spec, layout, semantic))
        elif stage == "coarse":
            before = (references[n][0], references[n][1][:coarse]) if references else None
            sequences.append(coarse_sequence(spec, layout, semantic, codes[:coarse], before))
        else:
            sequences.append(fine_sequence(spec, layout, codes))
    ids, fields = torch.stack([s.ids for s in sequences]), torch.stack([s.fields for s in sequences])
    length = len(pieces[0][0])
    if stage == "semantic":
        end = Vocabulary(stage, spec).end
        last = torch.tensor([[end if e else -1] for e in ends or [False] * len(pieces)])
        return Batch(torch.cat([ids, last], 1), torch.cat([fields, fields[:, -1:]], 1), length + 1)
    if ids.ndim == 3:
        return Batch(ids, fields, length * spec.frames_per_semantic)
    return Batch(ids, fields, length * spec.frames_per_semantic * (coarse if stage == "coarse" else spec.fine))


def cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """A `Measure`: nats `float32 [B, N]`, 0 where nothing is wanted."""
    return F.cross_entropy(logits.float().transpose(1, 2), wanted, ignore_index=-1, reduction="none")


def evidence(logits: Tensor, wanted: Tensor) -> Tensor:
    """A `Measure`: what speaks for a token having been drawn from these logits, `float32 [B, N, EVIDENCE]`: by how much
    its loss exceeds the entropy (nats), that entropy, the probability of what is likelier than it, and the first again
    at temperature COLDER. A model that knows a recording's kind finds it 0 above the entropy on average, one of another
    kind more, and what was drawn at a low temperature less (compare Fast-DetectGPT, Bao et al., 2024)."""
    drawn = wanted.clamp(min=0)[..., None]

    def known(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logs = logits.log_softmax(-1)
        shares = logs.exp()
        return logs, shares, -(shares * logs).sum(-1)

    logs, shares, entropy = known(logits.float())
    colder, _, colder_entropy = known(logits.float() / COLDER)
    own = logs.gather(-1, drawn)
    likelier = (shares * (logs > own)).sum(-1)
    excess, colder_excess = -own[..., 0] - entropy, -colder.gather(-1, drawn)[..., 0] - colder_entropy
    return torch.stack([excess, entropy, likelier, colder_excess], -1)


def token_losses(model: Stack, batch: Batch, inputs: Tensor | None = None, measure: Measure = cross_entropy) -> Tensor:
    """Cross entropy in nats of every target token: `float32 [B, steps, quantizers]`, in stage 1 `[B, targets]`; with
    another `measure` its numbers of every token, `[B, steps, K, quantizers]` or `[B, targets, K]`.

    The model reads `inputs` in place of the batch's ids where they are given. In stage 1, tokens that are no targets
    have loss 0, and so have specials in the layout `frames`.
    """
    if isinstance(model, ParallelTransformer):
        return _parallel_losses(model, batch.ids, measure)
    read = batch.ids if inputs is None else inputs
    targets = batch.ids[:, -batch.targets :]
    if isinstance(model, FrameTransformer):
        size = model.spec.codebook_size
        hidden = model(read[:, :-1], batch.fields[:, :-1])[:, -batch.targets :]
        wanted = targets.masked_fill(targets >= size, -1)
        by_quantizer = enumerate(model.code_logits(hidden, read[:, -batch.targets :]))
        return torch.stack([measure(logits, wanted[..., q]) for q, logits in by_quantizer], -1)
    assert isinstance(model, Transformer)
    vocabulary, spec = model.vocabulary, model.spec
    hidden = model(read[:, :-1], batch.fields[:, :-1])[:, -batch.targets :]
    if vocabulary.stage == "semantic":
        return measure(model.logits(hidden, 0, vocabulary.end + 1), targets)
    first, last = (0, spec.coarse) if vocabulary.stage == "coarse" else (spec.coarse, spec.quantizers)
    count, losses = last - first, []
    for n in range(count):
        low = vocabulary.code(first + n)
        logits = model.logits(hidden[:, n::count], low, spec.codebook_size)
        losses.append(measure(logits, targets[:, n::count] - low))
    return torch.stack(losses, -1)


def _parallel_losses(model: ParallelTransformer, codes: Tensor, measure: Measure) -> Tensor:
    levels = torch.arange(model.spec.quantizers, device=codes.device)[:, None]
    losses = []
    for q in range(model.spec.coarse, model.spec.quantizers):
        hidden = model(codes.masked_fill(levels >= q, -1), torch.full((len(codes),), q, device=codes.device))
        losses.append(measure(model.code_logits(hidden, q), codes[:, q]))
    return torch.stack(losses, -1)


class Strangeness(NamedTuple):
    """How strange a recording is to stages 1 and 2, in bits: `surprise`, of a coarse code, each semantic token's codes
    by themselves, and SEMANTIC_SHARE of those of a semantic token; and `semantic`, those of a semantic token alone."""

    surprise: float
    semantic: float


@torch.inference_mode()
def strangeness(semantic_model: Transformer, coarse_model: Decoder, semantic: Tensor, codes: Tensor) -> Strangeness:
    """How strange the tokens of a recording are: semantic `int64 [S]`, S at least 1, codes `int64 [Q, F]`.

    What came before would help to predict the codes, and most where a sound stays as it is, whatever it is. Codes alone
    tell piano from speech better than speech from piano, semantic tokens the other way round. What is too easy to
    predict is no speech either: of silence, tones and noise semantic tokens cost few bits, whatever the codes do.
    """
    spec, per, device = coarse_model.spec, coarse_model.spec.frames_per_semantic, coarse_model.ids.weight.device
    frames = codes[: spec.coarse, : len(semantic) * per].unfold(1, per, per).transpose(0, 1)  # [S, coarse, per]
    layout = coarse_model.config.layout
    pieces = [(s[None], c) for s, c in zip(semantic, frames, strict=True)]
    code_losses = token_losses(coarse_model, batch_of("coarse", layout, spec, pieces).to(device))
    whole = batch_of("semantic", semantic_model.config.layout, spec, [(semantic, codes)])
    losses = token_losses(semantic_model, whole.to(device))[:, :-1]
    surprise = float(code_losses.mean() + SEMANTIC_SHARE * losses.mean()) / math.log(2)
    return Strangeness(surprise, float(losses.mean()) / math.log(2))


@torch.inference_mode()
def prompt_gain(model: Transformer, prompt: Tensor, continuation: Tensor) -> float:
    """By how many bits a token a prompt makes its continuation likelier to stage 1 than nothing before it would:
    semantic `int64 [P]` and `int64 [N]`, N at least 1, together no more than the model's window.

    What is likely after anything, such as silence or a loop, gains nothing by that. Each call is a batch of its own, so
    that the last bit does not depend on what else is asked.
    """
    layout, spec, device = model.config.layout, model.spec, model.ids.weight.device
    nats = []
    for tokens in (continuation, torch.cat([prompt, continuation])):
        batch = batch_of("semantic", layout, spec, [(tokens, tokens[:0])]).to(device)
        nats.append(float(token_losses(model, batch)[0, -len(continuation) - 1 : -1].double().mean()))  # without <end>
    return (nats[0] - nats[1]) / math.log(2)


@torch.inference_mode()
def traces(
    models: dict[StageName, Stack], semantic: Tensor, codes: Tensor, size: int, progress: Progress | None = None
) -> Tensor:
    """`evidence` of every token of a recording to every stage, frame by frame, `float32 [F, K]`; K is EVIDENCE for
    stage 1, whose tokens span several frames, and for each of the Q quantizers.

    semantic `int64 [S]`, codes `int64 [Q, F]`, F = S * frames_per_semantic. The stages read pieces of `size` semantic
    tokens, each for itself.
    """
    columns, tell = [], counted(progress, "judge", len(models) * len(semantic))
    for stage, model in models.items():
        spec, per, device = model.spec, model.spec.frames_per_semantic, model.ids.weight.device
        parts = []
        for piece in zip(semantic.split(size), codes.split(size * per, 1), strict=True):
            batch = batch_of(stage, model.config.layout, spec, [piece]).to(device)
            found = token_losses(model, batch, measure=evidence)[0]
            parts.append(found[:-1].repeat_interleave(per, 0) if stage == "semantic" else found.flatten(1))
            tell(len(piece[0]))
        columns.append(torch.cat(parts).cpu())
    return torch.cat(columns, 1)
