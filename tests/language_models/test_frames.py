"""The kind of stage 2 that makes a frame a step. Its decoding is tested with the engine."""

from __future__ import annotations

import math

import pytest
import torch

from audiolm_cli.config import preset
from audiolm_cli.language_models.frames import FrameTransformer
from audiolm_cli.language_models.likelihood import Batch, token_losses
from audiolm_cli.language_models.tokens import coarse_sequence
from audiolm_cli.training.parts.lm import training_loss
from tests.helpers.bundles import modules

SPEC = preset("tiny").tokens
TOKENS, REFERENCE, GAP = 20, 5, 1  # of a crop, of its reference; positions of the gap


@pytest.fixture(scope="module")
def model() -> FrameTransformer:
    return modules(preset("tiny"))["coarse"].eval()  # type: ignore[return-value]


def batch(count: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    sequences = []
    for _ in range(count):
        parts = [
            (
                torch.randint(SPEC.semantic_vocabulary, (n,), generator=generator),
                torch.randint(SPEC.codebook_size, (SPEC.coarse, 2 * n), generator=generator),
            )
            for n in (TOKENS, REFERENCE)
        ]
        sequences.append(coarse_sequence(SPEC, "frames", *parts[0], parts[1]))
    return Batch(torch.stack([s.ids for s in sequences]), torch.stack([s.fields for s in sequences]), 2 * TOKENS)


@pytest.mark.parametrize(("frame", "quantizer"), [(0, 0), (7, 2), (39, 3)])
def test_a_code_changes_what_comes_behind_it_and_nothing_before(model: FrameTransformer, frame: int, quantizer: int):
    one = batch(1)
    changed = one.ids.clone()
    place = 1 + 2 * REFERENCE + GAP + frame
    changed[0, place, quantizer] = (changed[0, place, quantizer] + 1) % SPEC.codebook_size
    before, after = (token_losses(model, Batch(ids, one.fields, one.targets))[0] for ids in (one.ids, changed))
    moved = (before != after).flatten()  # frame by frame, quantizer by quantizer
    first = frame * SPEC.coarse + quantizer
    assert not moved[:first].any()
    assert moved[first : first + SPEC.coarse + 1].all()


def test_the_reference_is_heard(model: FrameTransformer) -> None:
    one = batch(1)
    other = one.ids.clone()
    other[0, 1] = (other[0, 1] + 1) % SPEC.codebook_size
    before, after = (token_losses(model, Batch(ids, one.fields, one.targets)) for ids in (one.ids, other))
    assert (before != after).all()


def test_training_loss_counts_reference_and_crop_and_starts_at_a_uniform_guess() -> None:
    torch.manual_seed(0)
    model, some = FrameTransformer(preset("tiny").coarse, SPEC), batch(8)
    whole = token_losses(model, Batch(some.ids, some.fields, some.ids.shape[1] - 1))
    assert (whole[:, 2 * REFERENCE] == 0).all()  # the gap is no target
    assert (whole != 0).sum() == whole[:, GAP:].numel()
    loss = training_loss(model, some)
    assert loss.item() == pytest.approx(math.log(SPEC.codebook_size), abs=0.05)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
