"""The longest pause (`--max-pause`): once a pause is longer, stage 1 samples hotter until something else is sampled.

Only the tokens decide, so outputs do not depend on the batch, on the engine, or on how many tokens are asked for at a
time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

HEAT = 2.0  # factor of the temperature
REVIVED_SECONDS = 0.12  # of other tokens in a row end a pause; less is a click in it


@dataclass(frozen=True)
class PauseLimit:
    """The `tokens` that stand for silence, how many of them a pause may have, and how many others end it."""

    tokens: frozenset[int]
    longest: int
    revived: int

    @classmethod
    def of(cls, tokens: Iterable[int], seconds: float, rate: float) -> PauseLimit:
        """A limit of `seconds`, at `rate` tokens a second."""
        return cls(frozenset(tokens), int(round(seconds * rate, 6)), max(1, round(REVIVED_SECONDS * rate)))


class Pause:
    """The pause that an item's tokens so far end in."""

    def __init__(self, limit: PauseLimit, known: Iterable[int] = ()):
        self.limit, self.length, self.others = limit, 0, 0
        self.add(known)

    def add(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            if token in self.limit.tokens:
                self.length, self.others = self.length + 1, 0
            else:
                self.others += 1
                if self.others >= self.limit.revived:
                    self.length = 0

    @property
    def heat(self) -> float:
        """The factor of the temperature at which the next token is sampled."""
        return HEAT if self.length > self.limit.longest else 1.0
