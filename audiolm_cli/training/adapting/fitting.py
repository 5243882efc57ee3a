"""What all fine-tuned parts share: a plan, early stopping by validation, steps that a resumed run repeats exactly."""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audiolm_cli.errors import InputError
from audiolm_cli.training.adapting.interrupts import deferred
from audiolm_cli.training.trainer import VALIDATIONS, Best, Trainer

WARMUP = 20  # steps
PATIENCE = 3  # validations without improvement before early stopping
SAVE_SECONDS = 30.0
SHORTEST = 0.01  # minutes of a part: a step or two


@dataclass(frozen=True)
class Plan:
    """How a part is trained: for `minutes`, or for `steps`."""

    minutes: float
    steps: int
    threads: int
    device: str
    seed: int


@dataclass(frozen=True)
class FittingResult:
    """The figure on the validation recordings `before` and `after`, with the weights as stored, lower is better: bits
    per token of a stage, mel distance of the decoder; the cost; whether the fine-tuned weights were `kept`."""

    before: float
    after: float
    steps: int
    minutes: float
    kept: bool


Tell = Callable[[float, float, float], None]  # share done, lowest figure so far, figure before training


class Fitting:
    """The training of one part of `work`, whose `module` is trained; resumes from its last checkpoint."""

    def __init__(self, work: Path, name: str, module: nn.Module, plan: Plan, key: str, **how: Any):
        """`key` names the figure to lower, among those that `measure` returns in `run`; `how` goes to the `Trainer`."""
        options = argparse.Namespace(**vars(plan), runs=work, resume=True)
        self.plan, self.key = plan, key
        self.trainer = Trainer(
            name, options, module, warmup=WARMUP, steps=plan.steps, save_seconds=SAVE_SECONDS, tell=lambda line: None,
            **how,
        )  # fmt: skip

    def run(
        self,
        measure: Callable[[], Mapping[str, Any]],
        train: Callable[[Callable[[], None], Callable[[], Mapping[str, Any]]], Best],
        tell: Tell,
    ) -> tuple[float, dict[str, Tensor]]:
        """The figure before training, and the module's best state. `train(begin, validated)` trains: it calls `begin`
        first in each step and `validated` for figures. Raises InputError if nothing can be measured."""
        trainer = self.trainer

        def validated() -> Mapping[str, Any]:
            lowest, figures = trainer.extra["best"][0], measure()
            better = figures[self.key] < lowest
            trainer.extra["waited"] = 0 if better else trainer.extra.get("waited", 0) + 1
            if trainer.extra["waited"] >= PATIENCE:
                trainer.stop()
            return figures

        def begin() -> None:
            check()  # only here is the previous step complete and counted
            tell(trainer.progress, trainer.extra["best"][0], before)
            seed = self.plan.seed + 1 + trainer.step  # by step, so a resumed run draws the same
            torch.manual_seed(seed), random.seed(seed)

        with deferred(trainer.save) as check:
            if "best" not in trainer.extra:
                begun = time.monotonic()
                trainer.extra["before"] = trainer.keep_best(measure(), self.key)[0]
                trainer.extra["validating"] = (time.monotonic() - begun) / 60
            # about three validations run outside the steps
            trainer.minutes = max(SHORTEST, self.plan.minutes - 3 * trainer.extra["validating"])
            trainer.validate_seconds = 60 * trainer.minutes / VALIDATIONS
            before = float(trainer.extra["before"])
            if not math.isfinite(before):
                raise InputError("the stretches that are kept for validation are all too short; give longer recordings")
            return before, train(begin, validated)[1]

    def ship(
        self, file: Path, before: float, after: float, save: Callable[[Path, FittingResult], None]
    ) -> FittingResult:
        """Writes the part of `file` to adapted/: by `save`, or as it was if `after`, the figure of the weights as
        stored, is no better than `before`."""
        result = FittingResult(before, after, self.trainer.step, round(self.trainer.seconds / 60, 2), after < before)
        target = file.parents[1] / "adapted" / file.name
        target.parent.mkdir(exist_ok=True)
        if result.kept:
            save(target, result)
        else:
            target.write_bytes(file.read_bytes())
        return result
