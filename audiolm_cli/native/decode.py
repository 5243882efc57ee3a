"""What the engine asks for, by the native kernel: items go in as arrays, rows never depend on each other.

Threads take different items. Where the kernel is inside a step it cannot be interrupted, so it is given some at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from audiolm_cli import native
from audiolm_cli.errors import ModelError
from audiolm_cli.native.model import Weights, pointer

if TYPE_CHECKING:
    from audiolm_cli.language_models.sampling import StageSampling
    from audiolm_cli.language_models.tokens import Item, TokenSequence

STEPS = 16  # made at a time
LANES = 8  # as in vectors.h
ERRORS = {-1: "not enough memory", -3: "the model's weights lead to values that are not finite"}


def generate(
    weights: Weights,
    items: list[Item],
    sampling: StageSampling,
    batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """As `engine.generate`: the generated ids of each item. Raises ModelError where the weights are no good."""
    unfinished = [item for item in items if len(item.uniform)]
    results: list[Tensor] = []
    for start in range(0, len(unfinished), batch_size):
        batch = unfinished[start : start + batch_size]
        parts = max(1, min(torch.get_num_threads(), len(batch)))
        bounds = [len(batch) * n // parts for n in range(parts + 1)]
        with contextlib.ExitStack() as stack:
            sessions = [
                stack.enter_context(_opened(weights, batch[first:last], sampling))
                for first, last in itertools.pairwise(bounds)
            ]
            for made in _in_threads(sessions) if parts > 1 else _alone(sessions[0]):
                if progress:
                    progress(made)
            results += [result for session in sessions for result in session.results()]
    finished = iter(results)
    return [next(finished) if len(item.uniform) else item.uniform.long() for item in items]


def _alone(session: Session) -> Iterator[int]:
    session.prefill()
    while made := session.advance():
        yield made


def _in_threads(sessions: list[Session]) -> Iterator[int]:
    """Ends with no thread inside the kernel, whatever happens."""
    with ThreadPoolExecutor(len(sessions)) as pool:
        list(pool.map(Session.prefill, sessions))
        while made := sum(pool.map(Session.advance, sessions)):
            yield made


@contextlib.contextmanager
def _opened(weights: Weights, items: list[Item], sampling: StageSampling) -> Iterator[Session]:
    session = Session(weights, items, sampling)
    try:
        yield session
    finally:
        session.close()


@dataclass
class Session:
    """Items on their way through the kernel. Keeps all arrays that it points to."""

    weights: Weights
    items: list[Item]
    sampling: StageSampling
    kept: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.branches: list[native.Branch] = []
        self.beginnings: dict[
            bytes, tuple[int, np.ndarray]
        ] = {}  # of branches that share nothing: which, what it knows
        self.made: list[np.ndarray] = []
        s, model = self.sampling, self.weights.model
        guides = len(s.shares) if s.guidance else 0
        entries = [self._item(item, guides) for item in self.items]
        how = native.Sampling(
            s.temperature,
            s.top_p,
            s.top_k,
            self.items[0].size,
            guides,
            s.guidance,
            self._keep(np.asarray(s.shares, np.float32)),
        )
        error = ctypes.c_int()
        array, branches = (native.Item * len(entries))(*entries), (native.Branch * len(self.branches))(*self.branches)
        self.kept += [array, branches, how]
        self.handle = self.weights.library.audiolm_open(model, len(entries), array, branches, how, error)
        check(error.value)

    def close(self) -> None:
        self.weights.library.audiolm_close(self.handle)

    def prefill(self) -> None:
        for number in range(len(self.branches)):
            check(self.weights.library.audiolm_prefill(self.handle, number))

    def advance(self) -> int:
        """Makes some more steps; how many ids that were."""
        return check(self.weights.library.audiolm_advance(self.handle, STEPS))

    def results(self) -> list[Tensor]:
        pairs = zip(self.items, self.made, strict=True)
        return [torch.from_numpy(made.astype(np.int64)).view(item.uniform.shape) for item, made in pairs]

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
        for sequence in sequences:
            self._branch(sequence, steps)
        self.made.append(np.full((steps, quantizers), -1, np.int32))
        return native.Item(
            steps,
            len(sequences),
            -1 if item.stop is None else item.stop,
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
        shared = 0 if like == number else min(alike, known - 1) // LANES * LANES  # the last one's state is wanted
        self.branches.append(
            native.Branch(
                known,
                shared,
                like if shared else -1,
                self._keep(ids[:known].astype(np.int32)),
                self._keep(features(self.weights, fields[:, 2:], fields[:, 0])),
                self._keep(fields[:, 1].astype(np.int32)),
            )
        )


def features(weights: Weights, context: np.ndarray, streams: np.ndarray) -> np.ndarray:
    """What is added to the inputs of positions: context `int64 [N, C]`, streams `int64 [N]` -> `float32 [N, width]`."""
    assert weights.features is not None
    if weights.context is None:
        return weights.features[streams]
    around = weights.features[context].reshape(len(context), -1)
    rows = np.ascontiguousarray(np.pad(around, ((0, 0), (0, weights.context.inputs - around.shape[1]))))
    found = np.empty((len(rows), weights.context.outputs), np.float32)
    check(weights.library.audiolm_product(weights.context, len(rows), pointer(rows), pointer(found)))
    return found


def check(code: int) -> int:
    """A result of the kernel that is no error. Raises ModelError."""
    if code < 0:
        raise ModelError(ERRORS.get(code, f"the native kernel refuses these sizes ({code})"))
    return code
