"""How likely tokens are to the three language models: what training lowers, what tells that a recording is of a kind
unknown to a bundle, and what tells that the bundle made it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from audiolm_cli.console import Progress, Tell, counted
from audiolm_cli.language_models.semantic import SemanticTransformer
from audiolm_cli.language_models.tokens import StageName
from audiolm_cli.language_models.transformer import Decoder, Stack

# of speech, the piano bundle finds 0.93 strange, and of piano music, the speech bundle 0.91; with 1/4 0.89 and 0.925,
# with 1/2 0.94 and 0.88
SEMANTIC_SHARE = 1 / 3
COLDER = 0.6  # another temperature at which tokens are looked at: about that of what is made
EVIDENCE = 4  # numbers for a token


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


class Strangeness(NamedTuple):
    """How strange a recording is to stages 1 and 2, in bits: `surprise`, of a coarse code, each semantic token's codes
    by themselves, and SEMANTIC_SHARE of those of a semantic token; and `semantic`, those of a semantic token alone."""

    surprise: float
    semantic: float


@torch.inference_mode()
def strangeness(
    semantic_model: SemanticTransformer, coarse_model: Decoder, semantic: Tensor, codes: Tensor
) -> Strangeness:
    """How strange the tokens of a recording are: semantic `int64 [S]`, S at least 1, codes `int64 [Q, F]`.

    What came before would help to predict the codes, and most where a sound stays as it is, whatever it is. Codes alone
    tell piano from speech better than speech from piano, semantic tokens the other way round. What is too easy to
    predict is no speech either: of silence, tones and noise semantic tokens cost few bits, whatever the codes do.
    """
    spec, per, device = coarse_model.spec, coarse_model.spec.frames_per_semantic, coarse_model.ids.weight.device
    frames = codes[: spec.coarse, : len(semantic) * per].unfold(1, per, per).transpose(0, 1)  # [S, coarse, per]
    pieces = [(s[None], c) for s, c in zip(semantic, frames, strict=True)]
    code_losses = coarse_model.token_losses(coarse_model.batch(pieces).to(device))
    losses = semantic_model.token_losses(semantic_model.batch([(semantic, codes)]).to(device))
    surprise = float(code_losses.mean() + SEMANTIC_SHARE * losses.mean()) / math.log(2)
    return Strangeness(surprise, float(losses.mean()) / math.log(2))


@torch.inference_mode()
def prompt_gain(model: SemanticTransformer, prompt: Tensor, continuation: Tensor) -> float:
    """By how many bits a token a prompt makes its continuation likelier to stage 1 than nothing before it would:
    semantic `int64 [P]` and `int64 [N]`, N at least 1, together no more than the model's window.

    What is likely after anything, such as silence or a loop, gains nothing by that. Each call is a batch of its own, so
    that the last bit does not depend on what else is asked.
    """
    nats = []
    for tokens in (continuation, torch.cat([prompt, continuation])):
        batch = model.batch([(tokens, tokens[:0])]).to(model.ids.weight.device)
        nats.append(float(model.token_losses(batch)[0, -len(continuation) :].double().mean()))
    return (nats[0] - nats[1]) / math.log(2)


@torch.inference_mode()
def log_probabilities(model: Stack, semantic: Tensor, codes: Tensor, tell: Tell | None = None) -> Tensor:
    """Log-probability (nats) of every token of a recording, `float32 [steps, quantizers]`: one row for each semantic
    token in stage 1, for each frame in stages 2 and 3.

    semantic `int64 [S]`, codes `int64 [Q, F]`, F = S * frames_per_semantic. A token is given those before it in the
    stage's window, which moves on by half its length; stage 3 of the kind `parallel` knows all coarser codes of it.
    `tell` hears of the semantic tokens done.
    """
    per, rows = model.spec.frames_per_semantic, []
    for first, made, end in model.windows(len(semantic)):
        batch = model.batch([(semantic[first:end], codes[:, first * per : end * per])]).to(model.ids.weight.device)
        losses = model.token_losses(batch)[0]
        rows.append(-losses[(made - first) * (len(losses) // (end - first)) :].cpu())
        if tell:
            tell(end - made)
    return torch.cat(rows)


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
    for model in models.values():
        parts = []
        for piece in zip(semantic.split(size), codes.split(size * model.spec.frames_per_semantic, 1), strict=True):
            batch = model.batch([piece]).to(model.ids.weight.device)
            found = model.token_losses(batch, evidence)[0].flatten(1)
            parts.append(found.repeat_interleave(piece[1].shape[1] // len(found), 0))
            tell(len(piece[0]))
        columns.append(torch.cat(parts).cpu())
    return torch.cat(columns, 1)
