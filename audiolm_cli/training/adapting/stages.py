"""Fine-tunes one language model of a bundle on tokens of recordings; keeps the result only if validation improves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.utils import parametrize

from audiolm_cli.bundles import int8
from audiolm_cli.bundles.bundle import read_about, round_to_disk, save_part
from audiolm_cli.config import StageConfig, TokenSpec
from audiolm_cli.fields import from_json
from audiolm_cli.language_models.kinds import stage_model
from audiolm_cli.language_models.tokens import Batch, StageName
from audiolm_cli.language_models.transformer import Stack
from audiolm_cli.training.adapting import adapters
from audiolm_cli.training.adapting.fitting import Fitting, FittingResult, Plan, Tell
from audiolm_cli.training.corpora.tokenize import load_tokens
from audiolm_cli.training.parts import lm
from audiolm_cli.training.trainer import Best

PEAK_RATE, DROPOUT = 2e-3, 0.1
BATCH_SECONDS = {"semantic": 60.0, "coarse": 9.0, "fine": 4.5, "parallel": 24.0, "frames": 36.0}  # of audio
BATCHES = 3  # of 8 crops, in a validation


def adapt(work: Path, stage: StageName, plan: Plan, tell: Tell) -> FittingResult:
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
    kind = lm.crop_kind(model.config.layout, stage)
    fitting = Fitting(work, stage, adapted, plan, "bits", rate=PEAK_RATE)
    crops = lm.Crops(train, model, plan.seed)

    def bits() -> dict[str, Any]:
        with parametrize.cached():
            return lm.validation_bits(model, valid, BATCHES, conditioning=False)

    def trained(begin: Callable[[], None], validated: Callable[[], Mapping[str, Any]]) -> Best:
        def batch() -> Batch | None:
            begin()
            crops.rng = np.random.default_rng((plan.seed, fitting.trainer.step))
            return crops.batch(lm.drawn_shape(kind, crops.rng), BATCH_SECONDS[kind])

        return lm.train(fitting.trainer, model, batch, validated)

    before, state = fitting.run(bits, trained, tell)
    adapted.load_state_dict(state)
    adapters.merge(model)
    model.cpu()
    in_int8 = int8.MATRICES[stage] if int8.is_used(load_file(file)) else ()
    round_to_disk(model, in_int8)

    def save(target: Path, result: FittingResult) -> None:
        now = {
            "steps": result.steps,
            "minutes": result.minutes,
            "valid_bits": result.after,
            "valid_bits_before": result.before,
        }
        about["trained"] = {**now, "rank": adapters.RANK, "before": about["trained"]}
        save_part(target, model, about, in_int8)

    return fitting.ship(file, before, bits()["bits"], save)


def load_stage(file: Path, stage: StageName) -> tuple[Stack, dict[str, Any]]:
    """A part's model, in float32 with dropout, and the part's metadata."""
    about = read_about(file)
    config: StageConfig = from_json(StageConfig, about["config"], stage)
    spec: TokenSpec = from_json(TokenSpec, about["tokens"], "tokens")
    model = stage_model(config, spec, stage, DROPOUT)
    model.load_state_dict({name: tensor.float() for name, tensor in int8.restored(load_file(file)).items()})
    return model, about
