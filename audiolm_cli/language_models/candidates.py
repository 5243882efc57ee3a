"""The best of several candidates of stage 1 (`--best-of`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from audiolm_cli.language_models import stages
from audiolm_cli.language_models.likelihood import prompt_gain
from audiolm_cli.language_models.semantic import SemanticTransformer
from audiolm_cli.language_models.tokens import Window


def first_window(model: SemanticTransformer, known: int, total: float) -> Window:
    """The first window of an item in stage 1, the only one that is sure to see the known tokens."""
    return next(iter(model.windows(total, known)))


def best(
    model: SemanticTransformer,
    known: list[Tensor],
    totals: Sequence[float],
    context: stages.StageContext,
    candidates: int,
) -> tuple[list[Tensor], list[int], list[list[float]]]:
    """Samples the first window of several candidates for each item. Returns the best candidates' tokens, their numbers,
    and the scores of all.

    `prompt_gain` scores candidates; of equal ones the first wins. Memory holds one batch of candidates and one
    candidate for each item.
    """
    winners, scores = list(known), [list[float]() for _ in known]
    asked = [(i, candidate) for i in range(len(known)) for candidate in range(candidates)]
    for start in range(0, len(asked), context.batch_size):
        batch = asked[start : start + context.batch_size]
        places = [first_window(model, len(known[i]), totals[i]) for i, _ in batch]
        noise = [replace(context.noise[i], candidate=candidate) for i, candidate in batch]
        own = replace(context, noise=noise)
        made = stages.whole(stages.SemanticStage(model, [known[i] for i, _ in batch], [end for *_, end in places], own))
        for (i, _), (first, begin, end), tokens in zip(batch, places, made, strict=True):
            score = prompt_gain(model, tokens[first:begin], tokens[begin:end])
            if score > max(scores[i], default=-math.inf):
                winners[i] = tokens
            scores[i].append(score)
    return winners, [found.index(max(found)) for found in scores], scores
