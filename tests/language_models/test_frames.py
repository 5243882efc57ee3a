"""The kind of stage 2 that makes a frame a step. Its decoding is tested with the engine."""

from __future__ import annotations

import math

import pytest
import torch

from audiolm_cli.config import preset
from audiolm_cli.language_models.frames import FAITHFUL_SECONDS, FrameTransformer
from audiolm_cli.language_models.tokens import Batch
from tests.helpers.bundles import modules

SPEC = preset("tiny").tokens
TOKENS, REFERENCE, GAP = 20, 5, 1  # of a crop, of its reference; positions of the gap


@pytest.fixture(scope="module")
def model() -> FrameTransformer:
    return modules(preset("tiny"))["coarse"].eval()  # type: ignore[return-value]


def batch(count: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    sequences, model = [], FrameTransformer(preset("tiny").coarse, SPEC)
    for _ in range(count):
        parts = [
            (
                torch.randint(SPEC.semantic_vocabulary, (n,), generator=generator),
                torch.randint(SPEC.codebook_size, (SPEC.coarse, 2 * n), generator=generator),
            )
            for n in (TOKENS, REFERENCE)
        ]
        sequences.append(model.sequence(*parts[0], parts[1]))
    return Batch.of(sequences, 2 * TOKENS)


@pytest.mark.parametrize(("frame", "quantizer"), [(0, 0), (7, 2), (39, 3)])
def test_a_code_changes_what_comes_behind_it_and_nothing_before(model: FrameTransformer, frame: int, quantizer: int):
    one = batch(1)
    changed = one.ids.clone()
    place = 1 + 2 * REFERENCE + GAP + frame
    changed[0, place, quantizer] = (changed[0, place, quantizer] + 1) % SPEC.codebook_size
    before, after = (model.token_losses(Batch(ids, one.fields, one.targets))[0] for ids in (one.ids, changed))
    moved = (before != after).flatten()  # frame by frame, quantizer by quantizer
    first = frame * SPEC.coarse + quantizer
    assert not moved[:first].any()
    assert moved[first : first + SPEC.coarse + 1].all()


def test_the_reference_is_heard(model: FrameTransformer) -> None:
    one = batch(1)
    other = one.ids.clone()
    other[0, 1] = (other[0, 1] + 1) % SPEC.codebook_size
    before, after = (model.token_losses(Batch(ids, one.fields, one.targets)) for ids in (one.ids, other))
    assert (before != after).all()


def test_training_loss_counts_reference_and_crop_and_starts_at_a_uniform_guess() -> None:
    torch.manual_seed(0)
    model, some = FrameTransformer(preset("tiny").coarse, SPEC), batch(8)
    whole = model.token_losses(Batch(some.ids, some.fields, some.ids.shape[1] - 1))
    assert (whole[:, 2 * REFERENCE] == 0).all()  # the gap is no target
    assert (whole != 0).sum() == whole[:, GAP:].numel()
    loss = model.training_loss(some)
    assert loss.item() == pytest.approx(math.log(SPEC.codebook_size), abs=0.05)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_drift_takes_other_frames_of_the_same_token_and_none_at_the_beginning() -> None:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model, pieces = FrameTransformer(preset("tiny").coarse, SPEC), []
    for _ in range(8):
        semantic = torch.randint(4, (100,), generator=generator)  # 4 s
        codes = torch.randint(SPEC.codebook_size, (SPEC.coarse, 200), generator=generator)
        codes[0] = semantic.repeat_interleave(2)
        pieces.append((semantic, codes))
    some = model.batch(pieces)
    drifted = model._drifted(some)
    moved = (drifted != some.ids).any(-1)
    assert not moved[:, : 1 + round(FAITHFUL_SECONDS[0] * 50)].any()
    assert 0.1 < moved[:, 1 + round(FAITHFUL_SECONDS[1] * 50) :].float().mean() < 0.5
    assert torch.equal(drifted[..., 0], some.ids[..., 0])  # frames of the same token
    assert {tuple(frame) for frame in drifted[moved].tolist()} <= {tuple(f) for f in some.ids.flatten(0, 1).tolist()}
