"""Likelihoods of tokens under the three language models: log-probabilities, the out-of-distribution score of a
recording, the score of a candidate continuation, and the input features of the detector."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from audiolm_cli.console import Progress, Tell, counted
from audiolm_cli.language_models.semantic import SemanticTransformer
from audiolm_cli.language_models.tokens import StageName
from audiolm_cli.language_models.transformer import Decoder, Stack

# Stage 2 scores spans of so many semantic tokens; weight of the bits per semantic token. The piano bundle flags 0.90 of
# speech, and the speech bundle 0.81 of piano music. On half as many prompts, 0.87 and 0.77; with spans of one token,
# 0.38 and 0.90; without the semantic bits, 0.78 and 0.79; less the bits that the semantic tokens save stage 2, 0.90 and
# 0.86, but the speech bundle, calibrated on LibriSpeech, would flag 0.17 of Common Voice instead of 0.08.
SPAN, SEMANTIC_WEIGHT = 4, 1 / 3
COLD = 0.6  # close to the temperatures that bundles sample at
FEATURES = 4  # per token


def token_features(logits: Tensor, wanted: Tensor) -> Tensor:
    """Features that tell sampled tokens from recorded ones, `float32 [B, N, FEATURES]`; a `Measure`.

    Loss minus entropy (nats), entropy, probability of all likelier tokens, and loss minus entropy at temperature COLD.
    Loss minus entropy averages 0 on recordings that the model fits well, more on others, and less on tokens sampled at
    a low temperature (compare Fast-DetectGPT, Bao et al., 2024).
    """
    drawn = wanted.clamp(min=0)[..., None]

    def known(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logs = logits.log_softmax(-1)
        shares = logs.exp()
        return logs, shares, -(shares * logs).sum(-1)

    logs, shares, entropy = known(logits.float())
    cold, _, cold_entropy = known(logits.float() / COLD)
    own = logs.gather(-1, drawn)
    likelier = (shares * (logs > own)).sum(-1)
    excess, cold_excess = -own[..., 0] - entropy, -cold.gather(-1, drawn)[..., 0] - cold_entropy
    return torch.stack([excess, entropy, likelier, cold_excess], -1)


class OodScores(NamedTuple):
    """Out-of-distribution scores of a recording, in bits: `surprise` is the bits per coarse code plus SEMANTIC_WEIGHT
    times the bits per semantic token, `semantic` the bits per semantic token."""

    surprise: float
    semantic: float


@torch.inference_mode()
def ood_scores(
    semantic_model: SemanticTransformer, coarse_model: Decoder, semantic: Tensor, codes: Tensor
) -> OodScores:
    """Scores a recording by its tokens: semantic `int64 [S]`, S at least 1, codes `int64 [Q, F]`.

    Stage 2 sees the codes of SPAN semantic tokens at a time: with more context it predicts any steady sound well, with
    less also any chord. Very few semantic bits also mean no speech: silence, tones and noise are easy to predict.
    """
    spec, per, device = coarse_model.spec, coarse_model.spec.frames_per_semantic, coarse_model.ids.weight.device
    frames = codes[: spec.coarse, : len(semantic) * per].split(SPAN * per, 1)
    spans = zip(semantic.split(SPAN), frames, strict=True)  # a shorter last one is its own batch
    batches = [coarse_model.batch(list(group)) for _, group in itertools.groupby(spans, lambda span: len(span[0]))]
    code_losses = torch.cat([coarse_model.token_losses(batch.to(device)).flatten() for batch in batches])
    losses = semantic_model.token_losses(semantic_model.batch([(semantic, codes)]).to(device))
    surprise = float(code_losses.mean() + SEMANTIC_WEIGHT * losses.mean()) / math.log(2)
    return OodScores(surprise, float(losses.mean()) / math.log(2))


@torch.inference_mode()
def prompt_gain(model: SemanticTransformer, prompt: Tensor, continuation: Tensor) -> float:
    """Scores a continuation by how many bits per token the prompt saves stage 1: semantic `int64 [P]` and `int64 [N]`,
    N at least 1, together no longer than the model's window.

    A continuation that is likely after any prompt, such as silence or a loop, gains nothing. Each call is its own
    batch, so the last bit does not depend on other calls.
    """
    nats = []
    for tokens in (continuation, torch.cat([prompt, continuation])):
        batch = model.batch([(tokens, tokens[:0])]).to(model.ids.weight.device)
        nats.append(float(model.token_losses(batch)[0, -len(continuation) :].double().mean()))
    return (nats[0] - nats[1]) / math.log(2)


@torch.inference_mode()
def log_probabilities(model: Stack, semantic: Tensor, codes: Tensor, tell: Tell | None = None) -> Tensor:
    """Log-probability (nats) of every token of a recording, `float32 [steps, quantizers]`: one row per semantic token
    in stage 1, per frame in stages 2 and 3.

    semantic `int64 [S]`, codes `int64 [Q, F]`, F = S * frames_per_semantic. A token sees those before it in the stage's
    window, which slides by half its length; a `parallel` stage 3 sees all coarser codes of the window. `tell` gets the
    number of semantic tokens done.
    """
    per, rows = model.spec.frames_per_semantic, []
    for first, start, end in model.windows(len(semantic)):
        batch = model.batch([(semantic[first:end], codes[:, first * per : end * per])]).to(model.ids.weight.device)
        losses = model.token_losses(batch)[0]
        rows.append(-losses[(start - first) * (len(losses) // (end - first)) :].cpu())
        if tell:
            tell(end - start)
    return torch.cat(rows)


@torch.inference_mode()
def likelihood_features(
    models: dict[StageName, Stack], semantic: Tensor, codes: Tensor, size: int, progress: Progress | None = None
) -> Tensor:
    """`token_features` of all stages, one row per frame, `float32 [F, K]`. K is FEATURES for stage 1, whose tokens span
    several frames, plus FEATURES for each of the Q quantizers.

    semantic `int64 [S]`, codes `int64 [Q, F]`, F = S * frames_per_semantic. The stages read independent pieces of
    `size` semantic tokens.
    """
    columns, tell = [], counted(progress, "judge", len(models) * len(semantic))
    for model in models.values():
        parts = []
        for piece in zip(semantic.split(size), codes.split(size * model.spec.frames_per_semantic, 1), strict=True):
            batch = model.batch([piece]).to(model.ids.weight.device)
            found = model.token_losses(batch, token_features)[0].flatten(1)
            parts.append(found.repeat_interleave(piece[1].shape[1] // len(found), 0))
            tell(len(piece[0]))
        columns.append(torch.cat(parts).cpu())
    return torch.cat(columns, 1)
