"""What each stage feeds the engine and takes back: tokens in, more tokens out, for many items at once.

Stage 1 continues semantic tokens, once or several times to choose from; stage 2 makes coarse codes for semantic tokens;
stage 3 adds the fine codes. Outputs longer than a stage's window are made in windows that overlap; stage 2 then keeps
the beginning in front of every window, behind the gap token, and little of what it made itself, so that the voice does
not drift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from audiolm_cli.config import TokenSpec
from audiolm_cli.language_models import engine
from audiolm_cli.language_models.engine import Item
from audiolm_cli.language_models.frames import FrameTransformer
from audiolm_cli.language_models.likelihood import prompt_gain
from audiolm_cli.language_models.parallel import ParallelTransformer
from audiolm_cli.language_models.sampling import StageSampling, sample, uniforms
from audiolm_cli.language_models.tokens import (
    Sequence,
    Vocabulary,
    Window,
    coarse_sequence,
    fine_sequence,
    semantic_sequence,
    unflatten,
    windows,
)
from audiolm_cli.language_models.transformer import Decoder, Stack, Transformer

REFERENCE_SECONDS = 3.0  # kept in front of every window but the first
COARSE_KEPT_SECONDS = 2.0  # of the codes before a window; semantic tokens keep half a window
# Of what guidance leads away from in a resynthesis, the shares of what the model makes of the semantic tokens alone and
# of nothing: with even ones the reference's voice is nearest in 0.48 of 80 outputs instead of 0.57.
SHARES, SHARES_WITHOUT_VOICE = (0.8, 0.2), (0.5, 0.5)
FINE_CONTEXT_SECONDS = 1.0  # of the prompt's own codes in front of stage 3's first chunk

Progress = Callable[[int], None]  # told how many tokens have been made since it was last called


@dataclass(frozen=True)
class Noise:
    """Where an item's random numbers come from."""

    seed: int
    position: int  # in the job list
    sample: int
    candidate: int = 0  # of several for this sample, in stage 1

    def numbers(self, stage: int, first_frame: int, frames: int, first_quantizer: int, quantizers: int) -> Tensor:
        """`float32 [frames * quantizers]`, in flattened order; frames count from the start of the output."""
        frame = np.repeat(np.arange(first_frame, first_frame + frames), quantizers)
        quantizer = np.tile(np.arange(first_quantizer, first_quantizer + quantizers), frames)
        return torch.from_numpy(uniforms(self.seed, self.position, self.sample, stage, frame, quantizer))


def continue_semantic(
    model: Transformer, known: list[Tensor], totals: list[int], noise: list[Noise], sampling: StageSampling,
    batch_size: int, progress: Progress | None = None,
) -> list[Tensor]:  # fmt: skip
    """Stage 1: known `int64 [S_known]` per item -> `int64 [totals[i]]`. No `<end>`: the duration is asked for."""
    spec, layout = model.spec, model.config.layout
    size = round(model.config.window_seconds * spec.semantic_rate)
    tokens = [torch.cat([k, k.new_full((total - len(k),), -1)]) for k, total in zip(known, totals, strict=True)]
    plans = [windows(total, len(k), size, size // 2, size) for k, total in zip(known, totals, strict=True)]
    for active in _rounds(plans):
        items = []
        for i, (first, made, end) in active:
            numbers = noise[i].numbers(1, made, end - made, noise[i].candidate, 1)  # there is no quantizer to tell
            items.append(
                Item(
                    semantic_sequence(spec, layout, tokens[i][first:end]),
                    [0] * (end - made),
                    spec.semantic_vocabulary,
                    numbers,
                )
            )
        for (i, (_, made, end)), ids in zip(
            active, engine.generate(model, items, sampling, batch_size, progress), strict=True
        ):
            tokens[i][made:end] = ids
    return tokens


def first_window(model: Transformer, known: int, total: int) -> Window:
    """The first of an item's windows in stage 1, the only one that surely hears the known tokens."""
    size = round(model.config.window_seconds * model.spec.semantic_rate)
    return windows(total, known, size, size // 2, size)[0]


def best_semantic(
    model: Transformer, known: list[Tensor], totals: list[int], noise: list[Noise], sampling: StageSampling,
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
    model: Decoder, semantic: list[Tensor], known: list[Tensor], noise: list[Noise], sampling: StageSampling,
    batch_size: int, progress: Progress | None = None, voice: tuple[Tensor, Tensor] | None = None,
    faithful: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Stage 2: semantic `int64 [S]` and known codes `int64 [coarse, F_known]` per item -> `int64 [coarse, 2 S]`.

    `voice`, semantic tokens and coarse codes of a recording, stands in front of every window in place of the item's own
    beginning. Guidance leads away from what the model would make of the semantic tokens alone, and so to the voice; if
    `faithful`, as far away from what it would make of nothing at all, and so to the semantic tokens as well: in the
    layout that can do without them.
    """
    spec, layout = model.spec, model.config.layout
    per, by_frame = spec.frames_per_semantic, isinstance(model, FrameTransformer)
    faithful = faithful and by_frame
    if faithful:
        sampling = replace(sampling, shares=SHARES if voice else SHARES_WITHOUT_VOICE)
    size = round(model.config.window_seconds * spec.semantic_rate) * per
    codes = [_extended(k, len(s) * per) for k, s in zip(known, semantic, strict=True)]
    front = voice[1].shape[1] if voice else _frames(spec, REFERENCE_SECONDS)
    window = max(size - front, size // 2) // per * per  # with the reference no longer than what was trained
    kept = min(_frames(spec, COARSE_KEPT_SECONDS), window // 2) // per * per
    whole = window if voice else size
    plans = [windows(len(s) * per, k.shape[1], window, kept, whole) for k, s in zip(known, semantic, strict=True)]
    lows = [0] if by_frame else [Vocabulary("coarse", spec).code(q) for q in range(spec.coarse)]
    for active in _rounds(plans):
        items = []
        for i, (first, made, end) in active:
            reference = voice
            if first and not voice:
                beginning = min(front, first) // per
                reference = semantic[i][:beginning], codes[i][:, : beginning * per]
            sequence = coarse_sequence(
                spec, layout, semantic[i][first // per : -(-end // per)], codes[i][:, first:end], reference
            )
            numbers = noise[i].numbers(2, made, end - made, 0, spec.coarse)
            numbers = numbers.view(-1, spec.coarse) if by_frame else numbers
            guides: tuple[Sequence, ...] = ()
            if sampling.guidance and (faithful or made > first or reference):
                said = semantic[i][made // per : -(-end // per)]
                nothing = [torch.full_like(said, spec.semantic_vocabulary)] * faithful
                guides = tuple(coarse_sequence(spec, layout, s, codes[i][:, made:end]) for s in (said, *nothing))
            items.append(Item(sequence, lows * (end - made), spec.codebook_size, numbers, guides=guides))
        for (i, (_, made, end)), ids in zip(
            active, engine.generate(model, items, sampling, batch_size, progress), strict=True
        ):
            codes[i][:, made:end] = (
                ids.T if by_frame else unflatten(ids - torch.tensor(lows).repeat(end - made), spec.coarse)
            )
    return codes


def continue_fine(
    model: Transformer | ParallelTransformer, coarse: list[Tensor], known: list[Tensor], noise: list[Noise],
    sampling: StageSampling, batch_size: int, progress: Progress | None = None,
) -> list[Tensor]:  # fmt: skip
    """Stage 3: coarse `int64 [coarse, F]` and known codes `int64 [Q, F_known]` per item -> `int64 [Q, F]`.

    Token by token, chunks do not see each other, so all of them, of all items, go through the engine together.
    """
    if isinstance(model, ParallelTransformer):
        return _fine_in_parallel(model, coarse, known, noise, sampling, progress)
    spec, layout = model.spec, model.config.layout
    size, context = _fine_window(model)
    lows = [model.vocabulary.code(q) for q in range(spec.coarse, spec.quantizers)]
    codes, items, places = [], [], []
    for i, (c, k) in enumerate(zip(coarse, known, strict=True)):
        full = _extended(k, c.shape[1])
        full[: spec.coarse] = c
        codes.append(full)
        first, made = max(0, k.shape[1] - context), k.shape[1]
        while made < c.shape[1]:
            end = min(c.shape[1], first + size)
            sequence = fine_sequence(spec, layout, full[:, first:end])
            numbers = noise[i].numbers(3, made, end - made, spec.coarse, spec.fine)
            items.append(Item(sequence, lows * (end - made), spec.codebook_size, numbers))
            places.append((i, made, end))
            first = made = end
    for (i, made, end), ids in zip(places, engine.generate(model, items, sampling, batch_size, progress), strict=True):
        codes[i][spec.coarse :, made:end] = unflatten(ids - torch.tensor(lows).repeat(end - made), spec.fine)
    return codes


@torch.inference_mode()
def _fine_in_parallel(
    model: ParallelTransformer, coarse: list[Tensor], known: list[Tensor], noise: list[Noise], s: StageSampling,
    progress: Progress | None,
) -> list[Tensor]:  # fmt: skip
    """In windows that each begin with up to 1 s of what is there already, one quantizer after the other."""
    spec, device, plans, numbers = model.spec, model.ids.weight.device, [], []
    codes = [_extended(k, c.shape[1]) for c, k in zip(coarse, known, strict=True)]
    for full, c, k, n in zip(codes, coarse, known, noise, strict=True):
        full[: spec.coarse] = c
        plans.append(_parallel_windows(model, k.shape[1], c.shape[1]))
        drawn = (n.numbers(3, made, end - made, spec.coarse, spec.fine) for _, made, end in plans[-1])
        numbers.append([some.view(-1, spec.fine).T for some in drawn])
    if model.native is not None:
        from audiolm_cli.native.fill import Filling, fill

        items = zip((full.numpy().astype(np.int32) for full in codes), plans, numbers, strict=True)
        return fill(
            [
                Filling(model.native, full, spec.coarse, plan, [n.numpy() for n in some], s)
                for full, plan, some in items
            ],
            progress,
        )
    for i, plan in enumerate(plans):
        codes[i] = codes[i].to(device)
        for (first, made, end), some in zip(plan, numbers[i], strict=True):
            for q, uniform in enumerate(some.to(device), spec.coarse):
                hidden = model(codes[i][None, :, first:end], torch.tensor([q], device=device))[0, made - first :]
                logits = model.code_logits(hidden, q)
                codes[i][q, made:end] = sample(logits, uniform.contiguous(), s.temperature, s.top_k, s.top_p)
                if progress:
                    progress(end - made)
    return [full.cpu() for full in codes]


def _parallel_windows(model: ParallelTransformer, made: int, frames: int) -> list[Window]:
    size, context = _fine_window(model)
    found = []
    while made < frames:
        first = max(0, made - context)
        found.append((first, made, min(frames, first + size)))
        made = found[-1][2]
    return found


def _fine_window(model: Stack) -> tuple[int, int]:
    """Frames that stage 3 works on at once, and how many of them are what is there already."""
    size = _frames(model.spec, model.config.window_seconds)
    return size, min(_frames(model.spec, FINE_CONTEXT_SECONDS), size // 2)


def _rounds(plans: list[list[Window]]) -> Iterator[list[tuple[int, Window]]]:
    """The windows that can be made together: for every round a list of (item, window)."""
    for r in range(max(map(len, plans), default=0)):
        yield [(i, plan[r]) for i, plan in enumerate(plans) if r < len(plan)]


def _extended(codes: Tensor, frames: int) -> Tensor:
    return torch.cat([codes, codes.new_full((codes.shape[0], frames - codes.shape[1]), -1)], 1)


def _frames(spec: TokenSpec, seconds: float) -> int:
    return round(seconds * spec.sample_rate / spec.samples_per_frame)
