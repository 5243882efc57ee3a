"""Sampling the three stages on demand: known tokens in, more tokens out, for a batch of items.

Each stage pulls from the one before. Stage 3 asks for the coarse codes of its next window, stage 2 for the semantic
tokens that condition its next frames, and stage 1 samples those. So audio can be played while it is generated, and
memory is bounded by the windows, however long the output. An item's tokens do not depend on the other items, nor on how
many tokens are requested at a time.

An output longer than a stage's window is sampled in overlapping windows. Stage 2 keeps the beginning in front of every
window, behind the gap token, and only a little of its own output: otherwise the voice drifts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from audiolm_cli.config import TokenSpec
from audiolm_cli.language_models import engine
from audiolm_cli.language_models.kinds import CoarseModel, FineModel
from audiolm_cli.language_models.pauses import Pause, PauseLimit
from audiolm_cli.language_models.sampling import Noise, StageSampling
from audiolm_cli.language_models.semantic import SemanticTransformer
from audiolm_cli.language_models.tokens import (
    Infill,
    Item,
    Segment,
    TokenBuffer,
    TokenSequence,
    Window,
    frames,
    pieces,
    windows,
)
from audiolm_cli.language_models.transformer import Autoregressive

REFERENCE_SECONDS = 3.0  # kept in front of every window but the first
COARSE_KEPT_SECONDS, KEPT_BEHIND_VOICE = 1.0, 2.0  # of the codes before a window; semantic tokens keep half a window


@dataclass(frozen=True)
class StageContext:
    """What a stage samples with: each item's random numbers, the sampling settings, the engine's batch size, a progress
    callback, a timer and, in stage 1, the longest pause."""

    noise: Sequence[Noise]
    sampling: StageSampling
    batch_size: int
    progress: Callable[[int], None] | None = None
    timed: Callable[[], AbstractContextManager[None]] = nullcontext
    pauses: PauseLimit | None = None


class TokenSource:
    """The tokens of a batch of items, one buffer each, all known from the start. `totals` has their final lengths, None
    while a length is unknown."""

    def __init__(self, tokens: Sequence[Tensor]):
        self.buffers = [TokenBuffer(known) for known in tokens]
        self.totals: list[float | None] = [len(buffer) for buffer in self.buffers]

    def extend_to(self, wanted: Sequence[float]) -> None:
        """Extends each item to at least that many tokens, or to its end."""

    def limit(self, number: int) -> float:
        """The most tokens that an item can have."""
        total = self.totals[number]
        return math.inf if total is None else total

    def ends(self, number: int, place: int) -> bool:
        """Whether an item has no more than `place` tokens. May sample to find out."""
        return self.limit(number) <= place


class BatchedSource(TokenSource):
    """A source that the engine samples in rounds: one window of every incomplete item at a time."""

    per_token = 1  # engine steps
    at_once = engine.STEPS  # tokens of each item that the engine samples without a word from here

    def __init__(self, model: Autoregressive, known: Sequence[Tensor], context: StageContext):
        super().__init__(known)
        self.model, self.context = model, context
        self.plans: list[Iterator[Window]] = []
        self.windows: dict[int, Window] = {}  # of this round, by item; cut short where the item ends
        self.generation: engine.Generation | None = None
        self.done = 0  # tokens sampled for every item in this round
        self.pauses: list[Pause] = []  # each item's, if their length is limited
        for buffer in self.buffers:
            buffer.release("own", 0)

    def extend_to(self, wanted: Sequence[float]) -> None:
        while behind := {i for i, buffer in enumerate(self.buffers) if len(buffer) < min(wanted[i], self.limit(i))}:
            with self.context.timed():
                if self.generation is None:
                    self._open()
                else:
                    here = [wanted[i] - len(self.buffers[i]) for i in behind & self.windows.keys()]
                    self._advance(max(here, default=math.inf))

    def _open(self) -> None:
        self.done, items = 0, list[Item]()
        for i, plan in enumerate(self.plans):
            if len(self.buffers[i]) < self.limit(i) and not self.ends(i, len(self.buffers[i])):
                first, start, end = next(plan)
                self.buffers[i].release("own", first)
                self.windows[i] = first, start, int(min(end, self.limit(i)))
                items.append(self._item(i))
        if items:
            self.generation = engine.start(self.model, items, self.context.sampling, self.context.batch_size)

    def _advance(self, tokens: float) -> None:
        """Samples up to that many more tokens of each item in the round."""
        assert self.generation is not None
        left = max(end - len(self.buffers[i]) for i, (_, _, end) in self.windows.items())
        goal = self.done + min(tokens, left)
        self._prepare(int(goal))
        while self.done < goal:
            some = int(min(self.at_once, goal - self.done))
            self._heat()
            sampled = self.generation.advance(some * self.per_token)
            self.done += some
            if self.context.progress:
                self.context.progress(sampled)
            self._collect()
        if all(len(self.buffers[i]) >= end for i, (_, _, end) in self.windows.items()):
            self.close()

    def close(self) -> None:
        """Ends the round."""
        if self.generation is not None:
            self.generation.close()
        self.generation = None
        self.windows.clear()

    def _item(self, number: int) -> Item:
        """An item's window as the engine samples it."""
        raise NotImplementedError

    def _prepare(self, goal: int) -> None:
        """Provides the conditioning for the round's tokens up to `goal`."""

    def _limit_pauses(self, pauses: list[Pause]) -> None:
        """Limits each item's pauses, to which `_collect` adds what was sampled."""
        self.pauses, self.at_once = pauses, 1

    def _heat(self) -> None:
        """Tells the engine of items that sample their next `at_once` tokens hotter, to end a pause."""
        assert self.generation is not None
        for place, i in enumerate(self.windows if self.pauses else ()):
            self.generation.heat(place, self.pauses[i].heat)

    def _collect(self) -> None:
        """Appends what the engine has sampled."""
        raise NotImplementedError


class SemanticStage(BatchedSource):
    """Stage 1: continues known tokens `int64 [S_known]` up to `limits`; with `until_end` also to a sampled `<end>`.

    Guidance pushes away from the model that does not know what comes before the window's new tokens: the prompt, and in
    later windows the output so far.
    """

    model: SemanticTransformer

    def __init__(
        self, model: SemanticTransformer, known: Sequence[Tensor], limits: Sequence[float], context: StageContext,
        until_end: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, known, context)
        self.limits, self.until_end = limits, until_end
        self.totals = [None if until_end and len(k) < most else most for k, most in zip(known, limits, strict=True)]
        self.plans = [model.windows(math.inf, len(k)) for k in known]
        if limit := context.pauses:
            self._limit_pauses([Pause(limit, k.tolist()) for k in known])

    def limit(self, number: int) -> float:
        return min(super().limit(number), self.limits[number])

    def _item(self, number: int) -> Item:
        first, start, end = self.windows[number]
        noise, known = self.context.noise[number], self.buffers[number].slice(first, start)
        numbers = noise.numbers(
            1, start, end - start, noise.candidate, 1
        )  # there are no quantizers here: the number of the candidate takes their place
        unknown = known.new_full((end - start,), -1)
        guides = (self.model.sequence(unknown),) if self.context.sampling.guidance and start > first else ()
        item = self.model.item(self.model.sequence(torch.cat([known, unknown])), numbers, guides)
        return self.model.ending(item) if self.until_end else item

    def _collect(self) -> None:
        assert self.generation is not None
        for place, (i, (first, start, end)) in enumerate(self.windows.items()):
            buffer = self.buffers[i]
            if len(buffer) < end:
                ids = self.generation.ids(place)
                tokens = self.model.before_end(ids)
                more = tokens[len(buffer) - start :]
                buffer.append(more)
                if self.pauses:
                    self.pauses[i].add(more.tolist())
                if len(tokens) < len(ids) or len(buffer) == self.limits[i]:
                    self.totals[i], self.windows[i] = len(buffer), (first, start, len(buffer))


class CoarseStage(BatchedSource):
    """Stage 2: samples coarse codes `int64 [coarse, F]` for semantic tokens, behind known codes `[coarse, F_known]`.

    voice: semantic tokens and coarse codes of a reference recording. Windows have it in front, behind a gap, where
    otherwise the item's own beginning stands; without `gap` the first one continues it as it would a prompt.

    The context's `guide_weights` are of the two guides that classifier-free guidance pushes away from: the model
    without the voice, so towards the voice, and the model without any codes before and without semantic tokens, so
    towards the tokens too. Of later windows the first guide has the codes that they keep, or guidance would amplify how
    far these have drifted. A guide of weight 0, or left out, costs nothing; a kind that was not trained without tokens
    (`unconditional`) has the first alone.
    """

    model: CoarseModel

    def __init__(
        self, model: CoarseModel, semantic: TokenSource, known: Sequence[Tensor], context: StageContext,
        voice: Segment | None = None, gap: bool = True,
    ) -> None:  # fmt: skip
        self.spec, self.per, self.semantic = model.spec, model.spec.frames_per_semantic, semantic
        self.voice, self.gap = voice, gap
        weights = context.sampling.guide_weights if model.unconditional else (1.0,)
        self.guided = [weight > 0 for weight in weights]
        sampling = replace(context.sampling, guide_weights=tuple(filter(None, weights)))
        super().__init__(model, known, replace(context, sampling=sampling))
        size = model.window * self.per
        self.front = voice[1].shape[1] if voice else frames(self.spec, REFERENCE_SECONDS)
        window = max(size - self.front, size // 2) // self.per * self.per  # with the reference as long as in training
        seconds = KEPT_BEHIND_VOICE if voice else COARSE_KEPT_SECONDS
        kept = min(frames(self.spec, seconds), window // 2) // self.per * self.per
        self.plans = [windows(math.inf, k.shape[1], window, kept, window if voice else size) for k in known]
        self.planned: dict[int, Window] = {}  # of this round, before any is cut short
        self.conditioned: dict[int, int] = {}  # semantic tokens of each item that the engine has
        for own, buffer in zip(self.buffers, semantic.buffers, strict=True):
            buffer.release("coarse", 0)
            own.pin(self.front)
            buffer.pin(self.front // self.per)

    def limit(self, number: int) -> float:
        return self.semantic.limit(number) * self.per

    def ends(self, number: int, place: int) -> bool:
        self._need_semantic({number: place})
        return self.limit(number) <= place

    def _need_semantic(self, needed: dict[int, int]) -> None:
        """Extends the semantic tokens to those of the given frame of each item."""
        self.semantic.extend_to([needed[i] // self.per + 1 if i in needed else 0 for i in range(len(self.buffers))])

    def _item(self, number: int) -> Item:
        first, start, end = self.planned[number] = self.windows[number]
        self.semantic.buffers[number].release("coarse", first // self.per)
        ahead = self.model.lookahead
        self._need_semantic({number: end - 1 if ahead is None else min(start + ahead, end - 1)})
        return self._conditioned(number)

    def _conditioned(self, number: int) -> Item:
        """An item's window with the semantic tokens known so far."""
        first, start, end = self.planned[number]
        semantic, buffer, per, spec = self.semantic.buffers[number], self.buffers[number], self.per, self.spec
        count = self.conditioned[number] = min(len(semantic), -(-end // per))
        known = buffer.slice(first, start)
        codes = torch.cat([known, known.new_full((spec.coarse, end - start), -1)], 1)
        tokens, reference = semantic.slice(first // per, count), self.voice
        if first and not reference:
            beginning = min(self.front, first) // per
            reference = semantic.slice(0, beginning), buffer.slice(0, beginning * per)
        if first or not reference or self.gap:
            sequence = self.model.sequence(tokens, codes, reference)
        else:
            sequence = self.model.sequence(torch.cat([reference[0], tokens]), torch.cat([reference[1], codes], 1))
        guides: tuple[TokenSequence, ...] = ()
        if self.context.sampling.guidance and (any(self.guided[1:]) or start > first or reference):
            since = first or start  # the first window's codes before are the voice
            own = semantic.slice(since // per, count), codes[:, since - first :]
            nothing = torch.full((count - start // per,), spec.semantic_vocabulary), codes[:, start - first :]
            guides = tuple(self.model.sequence(*less) for less in itertools.compress((own, nothing), self.guided))
        item = self.model.item(
            sequence, self.context.noise[number].numbers(2, start, end - start, 0, spec.coarse), guides
        )
        self.per_token = len(item.uniform) // (end - start)
        return item

    def _prepare(self, goal: int) -> None:
        assert self.generation is not None
        going = {i: window for i, window in self.windows.items() if len(self.buffers[i]) < window[2]}
        ahead = self.model.lookahead or 0  # of the frame behind the last one sampled
        self._need_semantic({i: min(start + goal + ahead, end - 1) for i, (_, start, end) in going.items()})
        for place, (i, (first, start, end)) in enumerate(self.windows.items()):
            if i in going and self.limit(i) < end:
                self.windows[i] = first, start, int(self.limit(i))
                self.generation.shorten(place, (int(self.limit(i)) - start) * self.per_token)
            if i in going and self.conditioned[i] < min(len(self.semantic.buffers[i]), -(-end // self.per)):
                self.generation.update_fields(place, self._conditioned(i))

    def _collect(self) -> None:
        assert self.generation is not None
        for place, (i, (_, start, end)) in enumerate(self.windows.items()):
            if len(self.buffers[i]) < end:
                self.buffers[i].append(self.model.codes(self.generation.ids(place))[:, len(self.buffers[i]) - start :])


class FineStage:
    """Stage 3: adds the fine codes, window by window, behind known codes `int64 [Q, F_known]`. Without a model all
    codes are coarse and pass through."""

    def __init__(
        self,
        model: FineModel | None,
        coarse: TokenSource,
        known: Sequence[Tensor],
        spec: TokenSpec,
        context: StageContext,
    ):
        self.model, self.coarse, self.spec, self.context = model, coarse, spec, context
        self.buffers = [TokenBuffer(codes) for codes in known]
        self.plans = [model.fillings(k.shape[1]) if model else pieces(k.shape[1], spec) for k in known]
        self.next: dict[int, Window] = {i: next(plan) for i, plan in enumerate(self.plans)}  # of incomplete items
        for i, buffer in enumerate(coarse.buffers):
            buffer.release("fine", 0)
            if len(self.buffers[i]) >= coarse.limit(i):
                del self.next[i]

    def advance(self) -> dict[int, Tensor]:
        """The next codes of each incomplete item, `int64 [Q, F]`; empty when all are complete."""
        now = dict(self.next)
        self.coarse.extend_to([now[i][2] if i in now else 0 for i in range(len(self.buffers))])
        places, fillings = list[tuple[int, int, int, int]](), list[Infill]()
        for i, (first, start, end) in now.items():
            self.next[i] = next(self.plans[i])
            stay = self.next[i][1]
            if self.coarse.ends(i, end):
                stay = end = int(self.coarse.limit(i))
                del self.next[i]
            places.append((i, first, start, stay))
            if self.model is not None:
                coarse = self.coarse.buffers[i].slice(start, end)
                unknown = coarse.new_full((self.spec.fine, end - start), -1)
                codes = torch.cat([self.buffers[i].slice(first, start), torch.cat([coarse, unknown])], 1)
                numbers = self.context.noise[i].numbers(3, start, end - start, self.spec.coarse, self.spec.fine)
                fillings.append(Infill(codes, numbers, stay - start))
        fine = [torch.zeros(0, stay - start, dtype=torch.int64) for _, _, start, stay in places]
        if self.model is not None and fillings:
            with self.context.timed():
                fine = self.model.fill(fillings, self.context.sampling, self.context.batch_size, self.context.progress)
        settled = {}
        for (i, first, start, stay), codes in zip(places, fine, strict=True):
            settled[i] = torch.cat([self.coarse.buffers[i].slice(start, stay), codes[:, : stay - start]])
            self.buffers[i].append(settled[i])
            self.buffers[i].release("own", first)
            self.coarse.buffers[i].release("fine", stay)
        return settled


# ------------------------------------------------------------------------------------------- one stage alone


def continue_semantic(
    model: SemanticTransformer, known: list[Tensor], totals: list[int], context: StageContext, until_end: bool = False
) -> list[Tensor]:
    """Stage 1: known `int64 [S_known]` per item -> `int64 [totals[i]]`, or fewer where `<end>` may come."""
    return whole(SemanticStage(model, known, totals, context, until_end))


def continue_coarse(
    model: CoarseModel, semantic: list[Tensor], known: list[Tensor], context: StageContext
) -> list[Tensor]:
    """Stage 2: semantic `int64 [S]` and known codes `int64 [coarse, F_known]` per item -> `int64 [coarse, 2 S]`."""
    return whole(CoarseStage(model, TokenSource(semantic), known, context))


def complete(model: FineModel, coarse: list[Tensor], known: list[Tensor], context: StageContext) -> list[Tensor]:
    """Stage 3: coarse `int64 [coarse, F]` and known codes `int64 [Q, F_known]` per item -> `int64 [Q, F]`."""
    known = [torch.cat([c[:, : k.shape[1]], k[len(c) :]]) for c, k in zip(coarse, known, strict=True)]
    stage = FineStage(model, TokenSource(coarse), known, model.spec, context)
    codes = [[k] for k in known]
    while made := stage.advance():
        for i, more in made.items():
            codes[i].append(more)
    return [torch.cat(parts, 1) for parts in codes]


def whole(stage: SemanticStage | CoarseStage) -> list[Tensor]:
    """All tokens of a stage's items."""
    for buffer in stage.buffers:
        buffer.release("whole", 0)
    stage.extend_to([math.inf] * len(stage.buffers))
    return [buffer.slice(0, len(buffer)) for buffer in stage.buffers]
