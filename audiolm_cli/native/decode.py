"""The engine's decoding by the native kernel: items go in as arrays, and rows never depend on each other.

Threads take different items. The kernel cannot be interrupted inside a call, so each call does a limited number of
steps.
"""

from __future__ import annotations

import ctypes
import itertools
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from audiolm_cli import native
from audiolm_cli.errors import ModelError
from audiolm_cli.language_models.tokens import until_stop
from audiolm_cli.native.model import Weights, pointer

if TYPE_CHECKING:
    from audiolm_cli.language_models.sampling import StageSampling
    from audiolm_cli.language_models.tokens import Item, TokenSequence

T = TypeVar("T")

LANES = 8  # as in vectors.h
ERRORS = {-1: "not enough memory", -3: "the model's weights lead to values that are not finite"}


class Sessions:
    """An `engine.Generation` on the native kernel, with the items spread over threads. Raises ModelError for weights
    that the kernel cannot use. Once closed, even after an error, no thread is inside the kernel."""

    def __init__(self, weights: Weights, items: list[Item], sampling: StageSampling):
        unfinished = [number for number, item in enumerate(items) if len(item.uniform)]
        parts = max(1, min(torch.get_num_threads(), len(unfinished)))
        bounds = [len(unfinished) * n // parts for n in range(parts + 1)]
        self.items, self.sessions, self.places = items, list[Session](), dict[int, tuple[Session, int]]()
        self.pool = ThreadPoolExecutor(parts) if parts > 1 else None
        try:
            for first, last in itertools.pairwise(bounds if unfinished else []):
                session = Session(weights, [items[number] for number in unfinished[first:last]], sampling)
                self.sessions.append(session)
                self.places |= {number: (session, place) for place, number in enumerate(unfinished[first:last])}
            list(self._each(Session.prefill))
        except BaseException:
            self.close()
            raise

    def _each(self, work: Callable[[Session], T]) -> Iterator[T]:
        return self.pool.map(work, self.sessions) if self.pool else map(work, self.sessions)

    def advance(self, steps: int) -> int:
        return sum(self._each(lambda session: session.advance(steps)))

    def ids(self, number: int) -> Tensor:
        item = self.items[number]
        if number not in self.places:
            return item.uniform.long()
        session, place = self.places[number]
        return until_stop(item, session.ids(place))

    def update_fields(self, number: int, item: Item) -> None:
        session, place = self.places[number]
        session.update_fields(place, item)

    def shorten(self, number: int, steps: int) -> None:
        session, place = self.places[number]
        session.entries[place].steps = steps

    def heat(self, number: int, factor: float) -> None:
        if number in self.places:
            session, place = self.places[number]
            session.entries[place].heat = factor

    def close(self) -> None:
        if self.pool:
            self.pool.shutdown()
        for session in self.sessions:
            session.close()


@dataclass
class Session:
    """Items being decoded by the kernel. Keeps alive all arrays that it points to."""

    weights: Weights
    items: list[Item]
    sampling: StageSampling
    kept: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.branches: list[native.Branch] = []
        self.features: list[np.ndarray | None] = []  # by branch
        self.first: list[int] = []  # each item's first branch
        self.done = 0  # steps done for each item
        self.beginnings: dict[
            bytes, tuple[int, np.ndarray]
        ] = {}  # first tokens -> a branch that shares no cache, and its known positions
        self.made: list[np.ndarray] = []
        s, model = self.sampling, self.weights.model
        guides = len(s.guide_weights) if s.guidance else 0
        entries = [self._item(item, guides) for item in self.items]
        how = native.Sampling(
            s.temperature,
            s.top_p,
            s.top_k,
            self.items[0].size,
            guides,
            s.guidance,
            self._keep(np.asarray(s.guide_weights, np.float32)),
        )
        error = ctypes.c_int()
        self.entries, branches = (
            (native.Item * len(entries))(*entries),
            (native.Branch * len(self.branches))(*self.branches),
        )
        self.kept += [branches, how]
        self.handle = self.weights.library.audiolm_open(model, len(entries), self.entries, branches, how, error)
        check(error.value)
        # also if nobody closes it, as with an abandoned stream
        self._free = weakref.finalize(self, self.weights.library.audiolm_close, self.handle)
        self._free.atexit = False

    def close(self) -> None:
        self._free()
        self.handle = None

    def prefill(self) -> None:
        for number in range(len(self.branches)):
            check(self.weights.library.audiolm_prefill(self.handle, number))

    def advance(self, steps: int) -> int:
        """Decodes up to `steps` more steps of each item; returns the number of new ids."""
        self.done += steps
        return check(self.weights.library.audiolm_advance(self.handle, steps))

    def ids(self, number: int) -> Tensor:
        """An item's ids so far."""
        made = self.made[number][: min(self.done, self.entries[number].steps)].astype(np.int64)
        return torch.from_numpy(made).view(-1, *self.items[number].uniform.shape[1:])

    def update_fields(self, number: int, item: Item) -> None:
        """Recomputes the features of an item's steps to come; those already read stay."""
        for branch, sequence in enumerate([item.sequence, *item.guides], self.first[number]):
            place = sequence.known + max(0, self.done - 1)
            fields = sequence.fields[place:].numpy()
            own = self.features[branch]
            assert own is not None
            own[place:] = features(self.weights, fields[:, 2:], fields[:, 0])

    def _keep(self, array: np.ndarray) -> Any:
        self.kept.append(array)
        return pointer(array)

    def _item(self, item: Item, guides: int) -> native.Item:
        steps, quantizers = len(item.uniform), self.weights.model.quantizers
        if item.uniform.numel() != steps * quantizers or item.size != self.items[0].size or len(item.low) != steps:
            raise ValueError("the items of a batch must draw from ranges of one size, a number for each id")
        sequences = [item.sequence, *item.guides[:guides]]
        if len(sequences) not in (1, 1 + guides):
            raise ValueError("an item has as many guides as the sampling has shares, or none")
        self.first.append(len(self.branches))
        for sequence in sequences:
            self._branch(sequence, steps)
        self.made.append(np.full((steps, quantizers), -1, np.int32))
        return native.Item(
            steps,
            len(sequences),
            -1 if item.stop is None else item.stop,
            1.0,
            self._keep(np.asarray(item.low, np.int32)),
            self._keep(np.ascontiguousarray(item.uniform.numpy(), np.float32)),
            pointer(self.made[-1]),
        )

    def _branch(self, sequence: TokenSequence, steps: int) -> None:
        known, ids, fields = sequence.known, sequence.ids.numpy(), sequence.fields.numpy()
        if len(fields) != known + steps or len(ids) != known + steps:
            raise ValueError("what is unknown of a sequence is as long as what is to be made")
        facts, number = np.column_stack([ids[:known], fields[:known]]), len(self.branches)
        like, others = self.beginnings.setdefault(facts[:LANES].tobytes(), (number, facts))
        same = (others[:known] == facts[: len(others)]).all(1)
        alike = len(same) if same.all() else int(same.argmin())
        shared = 0 if like == number else min(alike, known - 1) // LANES * LANES  # its last state is needed
        found = features(self.weights, fields[:, 2:], fields[:, 0])
        own = None if found is None else np.array(found)
        self.features.append(own)
        self.branches.append(
            native.Branch(
                known,
                shared,
                like if shared else -1,
                self._keep(ids[:known].astype(np.int32)),
                None if own is None else pointer(own),
                self._keep(fields[:, 1].astype(np.int32)),
            )
        )


def features(weights: Weights, context: np.ndarray, streams: np.ndarray) -> np.ndarray | None:
    """The features added to the inputs, if the model has any: context `int64 [N, C]`, streams `int64 [N]` -> `float32
    [N, width]`."""
    if weights.features is None:
        return None
    if weights.context is None:
        return weights.features[streams]
    around = weights.features[context].reshape(len(context), -1)
    rows = np.ascontiguousarray(np.pad(around, ((0, 0), (0, weights.context.inputs - around.shape[1]))))
    found = np.empty((len(rows), weights.context.outputs), np.float32)
    check(weights.library.audiolm_product(weights.context, len(rows), pointer(rows), pointer(found)))
    return found


def check(code: int) -> int:
    """Passes a result of the kernel on, and raises ModelError if it is an error."""
    if code < 0:
        raise ModelError(ERRORS.get(code, f"the native kernel refuses these sizes ({code})"))
    return code
