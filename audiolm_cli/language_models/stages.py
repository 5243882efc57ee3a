"""The three stages at work: tokens in, more tokens out, for several items at once, as far as somebody wants them.

Each stage draws on the one before: stage 3 asks for the coarse codes of its next window, stage 2 for the semantic
tokens that it must be told of, stage 1 makes these. So sound can be heard while it is made, and none of them holds more
than its windows, however long the output. What an item becomes depends neither on what else is made nor on how far it
was asked for at a time.

Outputs longer than a stage's window are made in windows that overlap; stage 2 then keeps the beginning in front of
every window, behind the gap token, and little of what it made itself, so that the voice does not drift.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from audiolm_cli.config import TokenSpec
from audiolm_cli.language_models import engine
from audiolm_cli.language_models.kinds import CoarseModel, FineModel
from audiolm_cli.language_models.likelihood import prompt_gain
from audiolm_cli.language_models.sampling import Noise, Progress, StageSampling
from audiolm_cli.language_models.semantic import SemanticTransformer
from audiolm_cli.language_models.tokens import Filling, Item, Line, Piece, TokenSequence, Window, frames, windows
from audiolm_cli.language_models.transformer import Autoregressive

REFERENCE_SECONDS = 3.0  # kept in front of every window but the first
COARSE_KEPT_SECONDS = 2.0  # of the codes before a window; semantic tokens keep half a window
# Of what guidance leads away from in a resynthesis, the shares of what the model makes of the semantic tokens alone and
# of nothing: with even ones the reference's voice is nearest in 0.48 of 80 outputs instead of 0.57.
SHARES, SHARES_WITHOUT_VOICE = (0.8, 0.2), (0.5, 0.5)
PIECES_SECONDS = 0.5, 1.0  # that are handed on where there is no stage 3, the first and all others


@dataclass(frozen=True)
class How:
    """How a stage makes its items: the noise of each, how tokens are drawn, the size of the engine's batches, who is
    told how many tokens are there, and what the time that it takes is counted in."""

    noise: Sequence[Noise]
    sampling: StageSampling
    batch_size: int
    progress: Progress | None = None
    timed: Callable[[], AbstractContextManager[None]] = nullcontext


class Source:
    """Tokens of several items, in `lines`; `totals` are how many there will be, None where nobody knows yet. Of given
    ones all are there."""

    def __init__(self, lines: Sequence[Tensor]):
        self.lines = [Line(tokens) for tokens in lines]
        self.totals: list[float | None] = [len(line) for line in self.lines]

    def until(self, wanted: Sequence[float]) -> None:
        """Goes on until each item has so many at least, or all that it will have."""

    def limit(self, number: int) -> float:
        """How many an item has at most."""
        total = self.totals[number]
        return math.inf if total is None else total

    def ends(self, number: int, place: int) -> bool:
        """Whether an item ends there, which it may have to find out."""
        return self.limit(number) <= place


class Rounds(Source):
    """A source that makes its items by the engine, in rounds: a window of every item that is not complete."""

    per_token = 1  # steps of the engine's

    def __init__(self, model: Autoregressive, known: Sequence[Tensor], how: How):
        super().__init__(known)
        self.model, self.how = model, how
        self.plans: list[Iterator[Window]] = []
        self.windows: dict[int, Window] = {}  # of this round, by item; they end sooner where the item does
        self.making: engine.Making | None = None
        self.done = 0  # tokens of every item in this round
        for line in self.lines:
            line.hold("own", 0)

    def until(self, wanted: Sequence[float]) -> None:
        while behind := {i for i, line in enumerate(self.lines) if len(line) < min(wanted[i], self.limit(i))}:
            with self.how.timed():
                if self.making is None:
                    self._open()
                else:
                    here = [wanted[i] - len(self.lines[i]) for i in behind & self.windows.keys()]
                    self._advance(max(here, default=math.inf))

    def _open(self) -> None:
        self.done, items = 0, list[Item]()
        for i, plan in enumerate(self.plans):
            if len(self.lines[i]) < self.limit(i) and not self.ends(i, len(self.lines[i])):
                first, made, end = next(plan)
                self.lines[i].hold("own", first)
                self.windows[i] = first, made, int(min(end, self.limit(i)))
                items.append(self._item(i))
        if items:
            self.making = engine.start(self.model, items, self.how.sampling, self.how.batch_size)

    def _advance(self, tokens: float) -> None:
        """Makes up to so many more of each item of the round."""
        assert self.making is not None
        left = max(end - len(self.lines[i]) for i, (_, _, end) in self.windows.items())
        goal = self.done + min(tokens, left)
        self._prepare(int(goal))
        while self.done < goal:
            some = int(min(engine.STEPS, goal - self.done))
            made = self.making.advance(some * self.per_token)
            self.done += some
            if self.how.progress:
                self.how.progress(made)
            self._collect()
        if all(len(self.lines[i]) >= end for i, (_, _, end) in self.windows.items()):
            self.close()

    def close(self) -> None:
        """Ends the round."""
        if self.making is not None:
            self.making.close()
        self.making = None
        self.windows.clear()

    def _item(self, number: int) -> Item:
        """What the engine is to make of an item's window."""
        raise NotImplementedError

    def _prepare(self, goal: int) -> None:
        """Sees to it that the next tokens can be made, up to `goal` of the round."""

    def _collect(self) -> None:
        """Takes over what the engine has made."""
        raise NotImplementedError


class SemanticStage(Rounds):
    """Stage 1: continues known tokens `int64 [S_known]` up to `limits`, or to where `<end>` comes if it may."""

    model: SemanticTransformer

    def __init__(
        self, model: SemanticTransformer, known: Sequence[Tensor], limits: Sequence[float], how: How,
        until_end: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(model, known, how)
        self.limits, self.until_end = limits, until_end
        self.totals = [None if until_end and len(k) < most else most for k, most in zip(known, limits, strict=True)]
        self.plans = [model.windows(math.inf, len(k)) for k in known]

    def limit(self, number: int) -> float:
        return min(super().limit(number), self.limits[number])

    def _item(self, number: int) -> Item:
        first, made, end = self.windows[number]
        noise, known = self.how.noise[number], self.lines[number].cut(first, made)
        numbers = noise.numbers(1, made, end - made, noise.candidate, 1)  # there is no quantizer to tell
        sequence = self.model.sequence(torch.cat([known, known.new_full((end - made,), -1)]))
        return (self.model.ending_item if self.until_end else self.model.item)(sequence, numbers)

    def _collect(self) -> None:
        assert self.making is not None
        for place, (i, (first, made, end)) in enumerate(self.windows.items()):
            line = self.lines[i]
            if len(line) < end:
                ids = self.making.ids(place)
                said = self.model.said(ids)
                line.append(said[len(line) - made :])
                if len(said) < len(ids) or len(line) == self.limits[i]:
                    self.totals[i], self.windows[i] = len(line), (first, made, len(line))


class CoarseStage(Rounds):
    """Stage 2: makes coarse codes `int64 [coarse, F]` for semantic tokens, behind known ones `[coarse, F_known]`.

    `voice`, semantic tokens and coarse codes of a recording, stands in front of every window in place of the item's own
    beginning. Guidance leads away from what the model would make of the semantic tokens alone, and so to the voice; if
    `faithful`, as far away from what it would make of nothing at all, and so to the semantic tokens as well: where the
    kind has learned to do without them.
    """

    model: CoarseModel

    def __init__(
        self, model: CoarseModel, semantic: Source, known: Sequence[Tensor], how: How, voice: Piece | None = None,
        faithful: bool = False,
    ) -> None:  # fmt: skip
        self.spec, self.per, self.semantic, self.voice = model.spec, model.spec.frames_per_semantic, semantic, voice
        self.faithful = faithful and model.unconditional
        if self.faithful:
            how = replace(how, sampling=replace(how.sampling, shares=SHARES if voice else SHARES_WITHOUT_VOICE))
        super().__init__(model, known, how)
        size = model.window * self.per
        self.front = voice[1].shape[1] if voice else frames(self.spec, REFERENCE_SECONDS)
        window = max(size - self.front, size // 2) // self.per * self.per  # with the reference as long as in training
        kept = min(frames(self.spec, COARSE_KEPT_SECONDS), window // 2) // self.per * self.per
        self.plans = [windows(math.inf, k.shape[1], window, kept, window if voice else size) for k in known]
        self.planned: dict[int, Window] = {}  # of this round, as they were begun
        self.told: dict[int, int] = {}  # semantic tokens that the engine knows of each
        for own, line in zip(self.lines, semantic.lines, strict=True):
            line.hold("coarse", 0)
            own.keep(self.front)
            line.keep(self.front // self.per)

    def limit(self, number: int) -> float:
        return self.semantic.limit(number) * self.per

    def ends(self, number: int, place: int) -> bool:
        self._ask({number: place})
        return self.limit(number) <= place

    def _ask(self, needed: dict[int, int]) -> None:
        """Has the semantic tokens made that go with frames."""
        self.semantic.until([needed[i] // self.per + 1 if i in needed else 0 for i in range(len(self.lines))])

    def _item(self, number: int) -> Item:
        first, made, end = self.planned[number] = self.windows[number]
        self.semantic.lines[number].hold("coarse", first // self.per)
        ahead = self.model.lookahead
        self._ask({number: end - 1 if ahead is None else min(made + ahead, end - 1)})
        return self._told(number)

    def _told(self, number: int) -> Item:
        """An item's window with the semantic tokens that are there by now."""
        first, made, end = self.planned[number]
        semantic, line, per, spec = self.semantic.lines[number], self.lines[number], self.per, self.spec
        there = self.told[number] = min(len(semantic), -(-end // per))
        reference = self.voice
        if first and not self.voice:
            beginning = min(self.front, first) // per
            reference = semantic.cut(0, beginning), line.cut(0, beginning * per)
        known = line.cut(first, made)
        codes = torch.cat([known, known.new_full((spec.coarse, end - made), -1)], 1)
        sequence = self.model.sequence(semantic.cut(first // per, there), codes, reference)
        guides: tuple[TokenSequence, ...] = ()
        if self.how.sampling.guidance and (self.faithful or made > first or reference):
            said = semantic.cut(made // per, there)
            nothing = [torch.full_like(said, spec.semantic_vocabulary)] * self.faithful
            guides = tuple(self.model.sequence(s, codes[:, made - first :]) for s in (said, *nothing))
        item = self.model.item(sequence, self.how.noise[number].numbers(2, made, end - made, 0, spec.coarse), guides)
        self.per_token = len(item.uniform) // (end - made)
        return item

    def _prepare(self, goal: int) -> None:
        assert self.making is not None
        going = {i: window for i, window in self.windows.items() if len(self.lines[i]) < window[2]}
        ahead = self.model.lookahead or 0  # of the frame that comes after the last that is made
        self._ask({i: min(made + goal + ahead, end - 1) for i, (_, made, end) in going.items()})
        for place, (i, (first, made, end)) in enumerate(self.windows.items()):
            if i in going and self.limit(i) < end:
                self.windows[i] = first, made, int(self.limit(i))
                self.making.shorten(place, (int(self.limit(i)) - made) * self.per_token)
            if i in going and self.told[i] < min(len(self.semantic.lines[i]), -(-end // self.per)):
                self.making.inform(place, self._told(i))

    def _collect(self) -> None:
        assert self.making is not None
        for place, (i, (_, made, end)) in enumerate(self.windows.items()):
            if len(self.lines[i]) < end:
                self.lines[i].append(self.model.codes(self.making.ids(place))[:, len(self.lines[i]) - made :])


class FineStage:
    """Stage 3: completes coarse codes, window after window, behind known codes `int64 [Q, F_known]`. Without a model
    all codes are coarse, and are handed on."""

    def __init__(self, model: FineModel | None, coarse: Source, known: Sequence[Tensor], spec: TokenSpec, how: How):
        self.model, self.coarse, self.spec, self.how = model, coarse, spec, how
        self.lines = [Line(codes) for codes in known]
        self.plans = [model.fillings(k.shape[1]) if model else _pieces(k.shape[1], spec) for k in known]
        self.next: dict[int, Window] = {i: next(plan) for i, plan in enumerate(self.plans)}  # of what is not complete
        for i, line in enumerate(coarse.lines):
            line.hold("fine", 0)
            if len(self.lines[i]) >= coarse.limit(i):
                del self.next[i]

    def advance(self) -> dict[int, Tensor]:
        """The codes that come next of each item, `int64 [Q, F]`; of none when all are complete."""
        now = dict(self.next)
        self.coarse.until([now[i][2] if i in now else 0 for i in range(len(self.lines))])
        places, fillings = list[tuple[int, int, int, int]](), list[Filling]()
        for i, (first, made, end) in now.items():
            self.next[i] = next(self.plans[i])
            stay = self.next[i][1]
            if self.coarse.ends(i, end):
                stay = end = int(self.coarse.limit(i))
                del self.next[i]
            places.append((i, first, made, stay))
            if self.model is not None:
                coarse = self.coarse.lines[i].cut(made, end)
                unknown = coarse.new_full((self.spec.fine, end - made), -1)
                codes = torch.cat([self.lines[i].cut(first, made), torch.cat([coarse, unknown])], 1)
                numbers = self.how.noise[i].numbers(3, made, end - made, self.spec.coarse, self.spec.fine)
                fillings.append(Filling(codes, numbers, stay - made))
        fine = [torch.zeros(0, stay - made, dtype=torch.int64) for _, _, made, stay in places]
        if self.model is not None and fillings:
            with self.how.timed():
                fine = self.model.fill(fillings, self.how.sampling, self.how.batch_size, self.how.progress)
        settled = {}
        for (i, first, made, stay), codes in zip(places, fine, strict=True):
            settled[i] = torch.cat([self.coarse.lines[i].cut(made, stay), codes[:, : stay - made]])
            self.lines[i].append(settled[i])
            self.lines[i].hold("own", first)
            self.coarse.lines[i].hold("fine", stay)
        return settled


def _pieces(known: int, spec: TokenSpec) -> Iterator[Window]:
    made, (first, others) = known, (max(1, frames(spec, seconds)) for seconds in PIECES_SECONDS)
    yield made, made, made + first
    while True:
        made += first if made == known else others
        yield made, made, made + others


# ------------------------------------------------------------------------------------------- a stage by itself


def continue_semantic(
    model: SemanticTransformer, known: list[Tensor], totals: list[int], noise: list[Noise], sampling: StageSampling,
    batch_size: int, progress: Progress | None = None, until_end: bool = False,
) -> list[Tensor]:  # fmt: skip
    """Stage 1: known `int64 [S_known]` per item -> `int64 [totals[i]]`, or fewer where `<end>` may come."""
    stage = SemanticStage(model, known, totals, How(noise, sampling, batch_size, progress), until_end)
    return whole(stage)


def continue_coarse(
    model: CoarseModel, semantic: list[Tensor], known: list[Tensor], noise: list[Noise], sampling: StageSampling,
    batch_size: int, progress: Progress | None = None,
) -> list[Tensor]:  # fmt: skip
    """Stage 2: semantic `int64 [S]` and known codes `int64 [coarse, F_known]` per item -> `int64 [coarse, 2 S]`."""
    return whole(CoarseStage(model, Source(semantic), known, How(noise, sampling, batch_size, progress)))


def complete(
    model: FineModel, coarse: list[Tensor], known: list[Tensor], noise: list[Noise], sampling: StageSampling,
    batch_size: int, progress: Progress | None = None,
) -> list[Tensor]:  # fmt: skip
    """Stage 3: coarse `int64 [coarse, F]` and known codes `int64 [Q, F_known]` per item -> `int64 [Q, F]`."""
    known = [torch.cat([c[:, : k.shape[1]], k[len(c) :]]) for c, k in zip(coarse, known, strict=True)]
    stage = FineStage(model, Source(coarse), known, model.spec, How(noise, sampling, batch_size, progress))
    codes = [[k] for k in known]
    while made := stage.advance():
        for i, more in made.items():
            codes[i].append(more)
    return [torch.cat(parts, 1) for parts in codes]


def whole(stage: SemanticStage | CoarseStage) -> list[Tensor]:
    """All tokens of its items."""
    for line in stage.lines:
        line.hold("whole", 0)
    stage.until([math.inf] * len(stage.lines))
    return [line.cut(0, len(line)) for line in stage.lines]


def first_window(model: SemanticTransformer, known: int, total: float) -> Window:
    """The first of an item's windows in stage 1, the only one that surely hears the known tokens."""
    return next(iter(model.windows(total, known)))


def best_semantic(
    model: SemanticTransformer, known: list[Tensor], totals: Sequence[float], how: How, candidates: int
) -> tuple[list[Tensor], list[int], list[list[float]]]:
    """Makes the first window of several candidates for each item: the tokens of the one that goes best with what is
    known, which one that is, and the scores of all.

    Candidates are scored by `prompt_gain`; of equals the first is taken. No more than a batch of candidates is in
    memory, and one for each item.
    """
    best, scores = list(known), [list[float]() for _ in known]
    asked = [(i, candidate) for i in range(len(known)) for candidate in range(candidates)]
    for start in range(0, len(asked), how.batch_size):
        batch = asked[start : start + how.batch_size]
        places = [first_window(model, len(known[i]), totals[i]) for i, _ in batch]
        noise = [replace(how.noise[i], candidate=candidate) for i, candidate in batch]
        own = replace(how, noise=noise)
        made = whole(SemanticStage(model, [known[i] for i, _ in batch], [end for *_, end in places], own))
        for (i, _), (first, begin, end), tokens in zip(batch, places, made, strict=True):
            score = prompt_gain(model, tokens[first:begin], tokens[begin:end])
            if score > max(scores[i], default=-math.inf):
                best[i] = tokens
            scores[i].append(score)
    return best, [found.index(max(found)) for found in scores], scores
