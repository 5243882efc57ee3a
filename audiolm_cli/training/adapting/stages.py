"""Fine-tunes one language model of a bundle on tokens of recordings; keeps the result only if validation improves."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.utils import parametrize

from audiolm_cli.bundles import int8
from audiolm_cli.bundles.bundle import read_about, round_to_disk, save_part
from audiolm_cli.config import StageConfig, TokenSpec, from_json
from audiolm_cli.errors import InputError
from audiolm_cli.language_models.kinds import stage_model
from audiolm_cli.language_models.tokens import Batch, StageName
from audiolm_cli.language_models.transformer import Stack
from audiolm_cli.training.adapting import adapters
from audiolm_cli.training.adapting.interrupts import deferred
from audiolm_cli.training.corpora.tokenize import load_tokens
from audiolm_cli.training.parts import lm
from audiolm_cli.training.trainer import VALIDATIONS, Trainer

SHARES: dict[StageName, float] = {"semantic": 0.3, "coarse": 0.7, "fine": 0.3}  # of the time, in order
PEAK_RATE, DROPOUT, WARMUP = 2e-3, 0.1, 20
BATCH_SECONDS = {"semantic": 60.0, "coarse": 9.0, "fine": 4.5, "parallel": 24.0, "frames": 36.0}  # of audio
PATIENCE = 3  # validations without improvement before early stopping
BATCHES = 3  # of 8 crops, in a validation
SAVE_SECONDS = 30.0
SHORTEST = 0.01  # minutes of a stage: a step or two


@dataclass(frozen=True)
class Plan:
    """How a stage is trained: for `minutes`, or for `steps`."""

    minutes: float
    steps: int
    threads: int
    device: str
    seed: int


@dataclass(frozen=True)
class Result:
    """Bits per token on the validation recordings `before` and `after`, with the weights as stored; the cost; whether
    the fine-tuned weights were `kept`."""

    before: float
    after: float
    steps: int
    minutes: float
    kept: bool


# stage, share done, lowest bits so far, bits before training
Tell = Callable[[StageName, float, float, float], None]


def adapt(work: Path, stage: StageName, plan: Plan, tell: Tell) -> Result:
    """Trains adapters for the part in parts/ of `work` on its tokens/, and writes the part that ships to adapted/: with
    the adapters merged, or unchanged if the validation bits did not improve.

    Resumes from the last checkpoint. The same number of steps gives the same part, interrupted or not.
    """
    file = work / "parts" / f"{stage}.safetensors"
    model, about = load_stage(file, stage)
    torch.manual_seed(plan.seed)
    adapted = adapters.adapt(model)
    train, valid = load_tokens(work, "train"), load_tokens(work, "valid")
    model.to(plan.device)
    options = argparse.Namespace(**vars(plan), runs=work, resume=True)
    kind = lm.crop_kind(model.config.layout, stage)
    trainer = Trainer(
        stage, options, adapted, rate=PEAK_RATE, warmup=WARMUP, steps=plan.steps, save_seconds=SAVE_SECONDS,
        tell=lambda line: None,
    )  # fmt: skip
    crops = lm.Crops(train, model, plan.seed)

    def bits() -> dict[str, object]:
        with parametrize.cached():
            return lm.validation_bits(model, valid, BATCHES, conditioning=False)

    def validated() -> dict[str, object]:
        lowest, figures = trainer.extra["best"][0], bits()
        better = float(str(figures["bits"])) < lowest
        trainer.extra["waited"] = 0 if better else trainer.extra.get("waited", 0) + 1
        if trainer.extra["waited"] >= PATIENCE:
            trainer.stop()
        return figures

    def batch() -> Batch | None:
        check()  # only here is the previous step complete and counted
        tell(stage, trainer.progress, trainer.extra["best"][0], before)
        torch.manual_seed(plan.seed + 1 + trainer.step)  # seeded by step, so a resumed run draws the same
        crops.rng = np.random.default_rng((plan.seed, trainer.step))
        return crops.batch(lm.drawn_shape(kind, crops.rng), BATCH_SECONDS[kind])

    with deferred(trainer.save) as check:
        if "best" not in trainer.extra:
            begun = time.monotonic()
            trainer.extra["before"] = lm.keep_best(trainer, bits())[0]
            trainer.extra["validating"] = (time.monotonic() - begun) / 60
        # about three validations run outside the steps
        trainer.minutes = max(SHORTEST, plan.minutes - 3 * trainer.extra["validating"])
        trainer.validate_seconds = 60 * trainer.minutes / VALIDATIONS
        before = float(trainer.extra["before"])
        if not math.isfinite(before):
            raise InputError("the stretches that are kept for validation are all too short; give longer recordings")
        _, state = lm.train(trainer, model, batch, validated)
    adapted.load_state_dict(state)
    adapters.merge(model)
    model.cpu()
    in_int8 = int8.MATRICES[stage] if int8.is_used(load_file(file)) else ()
    round_to_disk(model, in_int8)
    after = float(str(bits()["bits"]))
    result = Result(before, after, trainer.step, round(trainer.seconds / 60, 2), after < before)
    target = work / "adapted" / file.name
    target.parent.mkdir(exist_ok=True)
    if result.kept:
        trained = {"steps": result.steps, "minutes": result.minutes, "valid_bits": after, "valid_bits_before": before}
        about["trained"] = {**trained, "rank": adapters.RANK, "before": about["trained"]}
        save_part(target, model, about, in_int8)
    else:
        target.write_bytes(file.read_bytes())
    return result


def load_stage(file: Path, stage: StageName) -> tuple[Stack, dict[str, Any]]:
    """A part's model, in float32 with dropout, and the part's metadata."""
    about = read_about(file)
    config: StageConfig = from_json(StageConfig, about["config"], stage)
    spec: TokenSpec = from_json(TokenSpec, about["tokens"], "tokens")
    model = stage_model(config, spec, stage, DROPOUT)
    model.load_state_dict({name: tensor.float() for name, tensor in int8.restored(load_file(file)).items()})
    return model, about
