"""The kinds of stages: which model a stage's config asks for.

A kind is a `Stack`. It defines its sequences (`sequence`, `batch`), its losses (`token_losses`, `training_loss`), the
parts that the native kernel needs, and its sampling: stages 1 and 2 turn a window into an `item` for the engine (stage
2 turns the result back with `codes`), stage 3 completes codes by itself.
"""

from __future__ import annotations

from audiolm_cli.config import Layout, StageConfig, TokenSpec
from audiolm_cli.language_models.frames import FrameTransformer
from audiolm_cli.language_models.parallel import ParallelTransformer
from audiolm_cli.language_models.plain import PlainCoarse, PlainFine, PlainSemantic
from audiolm_cli.language_models.semantic import SemanticTransformer
from audiolm_cli.language_models.tokens import StageName
from audiolm_cli.language_models.transformer import Stack

CoarseModel = FrameTransformer | PlainCoarse
FineModel = ParallelTransformer | PlainFine
KINDS: dict[tuple[StageName, Layout], type[Stack]] = {
    ("semantic", "aligned"): SemanticTransformer,
    ("semantic", "plain"): PlainSemantic,
    ("coarse", "frames"): FrameTransformer,
    ("coarse", "plain"): PlainCoarse,
    ("fine", "parallel"): ParallelTransformer,
    ("fine", "plain"): PlainFine,
}


def stage_model(config: StageConfig, tokens: TokenSpec, name: StageName, dropout: float = 0.0) -> Stack:
    """The model that a stage's config asks for, with random weights."""
    return KINDS[name, config.layout](config, tokens, dropout)
