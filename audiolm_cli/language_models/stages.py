"""What stages 1 and 2 feed the engine and take back: tokens in, more tokens out, for many items at once.

Stage 1 continues semantic tokens, once or several times to choose from; stage 2 makes coarse codes for semantic tokens;
the kinds of stage 3 add the fine codes by themselves (`complete`). Outputs longer than a stage's window are made in
windows that overlap; stage 2 then keeps the beginning in front of every window, behind the gap token, and little of
what it made itself, so that the voice does not drift.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from audiolm_cli.language_models import engine
from audiolm_cli.language_models.kinds import CoarseModel
from audiolm_cli.language_models.likelihood import prompt_gain
from audiolm_cli.language_models.sampling import Noise, Progress, StageSampling
from audiolm_cli.language_models.semantic import SemanticTransformer
from audiolm_cli.language_models.tokens import Piece, TokenSequence, Window, extended, frames, rounds, windows

REFERENCE_SECONDS = 3.0  # kept in front of every window but the first
COARSE_KEPT_SECONDS = 2.0  # of the codes before a window; semantic tokens keep half a window
# Of what guidance leads away from in a resynthesis, the shares of what the model makes of the semantic tokens alone and
# of nothing: with even ones the reference's voice is nearest in 0.48 of 80 outputs instead of 0.57.
SHARES, SHARES_WITHOUT_VOICE = (0.8, 0.2), (0.5, 0.5)


def continue_semantic(
    model: SemanticTransformer, known: list[Tensor], totals: list[int], noise: list[Noise], sampling: StageSampling,
    batch_size: int, progress: Progress | None = None, until_end: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Stage 1: known `int64 [S_known]` per item -> `int64 [totals[i]]`, or fewer where `<end>` may come."""
    tokens = [torch.cat([k, k.new_full((total - len(k),), -1)]) for k, total in zip(known, totals, strict=True)]
    plans = [model.windows(total, len(k)) for k, total in zip(known, totals, strict=True)]
    item = model.ending_item if until_end else model.item
    for planned in rounds(plans):
        active = [(i, window) for i, window in planned if len(tokens[i]) == totals[i]]  # the others have ended
        items = []
        for i, (first, made, end) in active:
            numbers = noise[i].numbers(1, made, end - made, noise[i].candidate, 1)  # there is no quantizer to tell
            items.append(item(model.sequence(tokens[i][first:end]), numbers))
        for (i, (_, made, end)), ids in zip(
            active, engine.generate(model, items, sampling, batch_size, progress), strict=True
        ):
            said = model.said(ids)
            stop = made + len(said)
            tokens[i][made:stop] = said
            if stop < end:
                tokens[i] = tokens[i][:stop]
    return tokens


def first_window(model: SemanticTransformer, known: int, total: int) -> Window:
    """The first of an item's windows in stage 1, the only one that surely hears the known tokens."""
    return model.windows(total, known)[0]


def best_semantic(
    model: SemanticTransformer, known: list[Tensor], totals: list[int], noise: list[Noise], sampling: StageSampling,
    batch_size: int, candidates: int, progress: Progress | None = None,
) -> tuple[list[Tensor], list[list[float]]]:  # fmt: skip
    """As `continue_semantic`, which makes the first of several candidates for each item: the one that goes best with
    what is known, and the scores of all.

    Candidates are made in the first window and scored by `prompt_gain`; of equals the first is taken, and only what is
    taken goes on. No more than `batch_size` candidates are in memory, and one for each item.
    """
    best, scores = list(known), [list[float]() for _ in known]
    asked = [(i, candidate) for i in range(len(known)) for candidate in range(candidates)]
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size]
        places = [first_window(model, len(known[i]), totals[i]) for i, _ in batch]
        made = continue_semantic(
            model, [known[i] for i, _ in batch], [end for _, _, end in places],
            [replace(noise[i], candidate=candidate) for i, candidate in batch], sampling, batch_size, progress,
        )  # fmt: skip
        for (i, _), (first, begin, end), tokens in zip(batch, places, made, strict=True):
            score = prompt_gain(model, tokens[first:begin], tokens[begin:end])
            if score > max(scores[i], default=-math.inf):
                best[i] = tokens
            scores[i].append(score)
    taken = [replace(own, candidate=found.index(max(found))) for own, found in zip(noise, scores, strict=True)]
    return continue_semantic(model, best, totals, taken, sampling, batch_size, progress), scores


def continue_coarse(
    model: CoarseModel, semantic: list[Tensor], known: list[Tensor], noise: list[Noise], sampling: StageSampling,
    batch_size: int, progress: Progress | None = None, voice: Piece | None = None,
    faithful: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Stage 2: semantic `int64 [S]` and known codes `int64 [coarse, F_known]` per item -> `int64 [coarse, 2 S]`.

    `voice`, semantic tokens and coarse codes of a recording, stands in front of every window in place of the item's own
    beginning. Guidance leads away from what the model would make of the semantic tokens alone, and so to the voice; if
    `faithful`, as far away from what it would make of nothing at all, and so to the semantic tokens as well: where the
    kind has learned to do without them.
    """
    spec, per = model.spec, model.spec.frames_per_semantic
    faithful = faithful and model.unconditional
    if faithful:
        sampling = replace(sampling, shares=SHARES if voice else SHARES_WITHOUT_VOICE)
    size = model.window * per
    codes = [extended(k, len(s) * per) for k, s in zip(known, semantic, strict=True)]
    front = voice[1].shape[1] if voice else frames(spec, REFERENCE_SECONDS)
    window = max(size - front, size // 2) // per * per  # with the reference no longer than what was trained
    kept = min(frames(spec, COARSE_KEPT_SECONDS), window // 2) // per * per
    whole = window if voice else size
    plans = [windows(len(s) * per, k.shape[1], window, kept, whole) for k, s in zip(known, semantic, strict=True)]
    for active in rounds(plans):
        items = []
        for i, (first, made, end) in active:
            reference = voice
            if first and not voice:
                beginning = min(front, first) // per
                reference = semantic[i][:beginning], codes[i][:, : beginning * per]
            sequence = model.sequence(semantic[i][first // per : -(-end // per)], codes[i][:, first:end], reference)
            guides: tuple[TokenSequence, ...] = ()
            if sampling.guidance and (faithful or made > first or reference):
                said = semantic[i][made // per : -(-end // per)]
                nothing = [torch.full_like(said, spec.semantic_vocabulary)] * faithful
                guides = tuple(model.sequence(s, codes[i][:, made:end]) for s in (said, *nothing))
            items.append(model.item(sequence, noise[i].numbers(2, made, end - made, 0, spec.coarse), guides))
        for (i, (_, made, end)), ids in zip(
            active, engine.generate(model, items, sampling, batch_size, progress), strict=True
        ):
            codes[i][:, made:end] = model.codes(ids)
    return codes
