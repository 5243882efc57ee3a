"""The parallel kind of stage 3."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from audiolm_cli.config import preset
from audiolm_cli.language_models import stages
from audiolm_cli.language_models.parallel import ParallelTransformer
from audiolm_cli.language_models.sampling import Noise, StageSampling
from audiolm_cli.language_models.tokens import Batch
from tests.helpers.bundles import modules

SPEC = preset("tiny").tokens
GREEDY = StageSampling(0.0, 0, 1.0)


@pytest.fixture(scope="module")
def model() -> ParallelTransformer:
    return modules(preset("tiny"))["fine"].eval()  # type: ignore[return-value]


def codes(frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(SPEC.codebook_size, (SPEC.quantizers, frames), generator=generator)


def test_a_quantizer_depends_on_all_frames_but_not_on_finer_ones(model):
    whole, q = codes(20)[None], 6
    asked = torch.tensor([q])
    unknown = whole.clone()
    unknown[:, q:] = -1
    hidden = model(unknown, asked)
    for frame in (0, 19):
        changed = unknown.clone()
        changed[0, 2, frame] = (changed[0, 2, frame] + 1) % SPEC.codebook_size
        assert (model(changed, asked) - hidden).abs().amax((0, 2)).min() > 0
    losses = model.token_losses(Batch(whole, whole[:, :0], 20))
    finer = whole.clone()
    finer[:, q + 1 :] = 0
    assert torch.equal(model.token_losses(Batch(finer, finer[:, :0], 20))[..., q - 4], losses[..., q - 4])


def test_codes_are_the_likeliest_given_those_made_before(model):
    known, coarse = codes(10, 1), codes(35, 2)[: SPEC.coarse]
    coarse[:, :10] = known[: SPEC.coarse]
    (made,) = stages.complete(model, [coarse], [known], stages.StageContext([Noise(1, 0, 0)], GREEDY, 1))
    assert torch.equal(made[: SPEC.coarse], coarse)
    assert torch.equal(made[:, :10], known)
    for q in range(SPEC.coarse, SPEC.quantizers):
        given = made[None].clone()
        given[:, q:, 10:] = -1
        logits = model.code_logits(model(given, torch.tensor([q]))[0, 10:], q)
        assert torch.equal(logits.argmax(-1), made[q, 10:])


def test_long_outputs_are_made_in_windows_from_their_own_numbers(model):
    frames = 2 * 500 + 30
    progress: list[int] = []
    items = [codes(frames, seed)[: SPEC.coarse] for seed in (3, 4)]
    nothing, noise = codes(0), [Noise(1, n, 0) for n in range(2)]
    sampling = StageSampling(1.0, 0, 0.9)
    both = stages.complete(model, items, [nothing] * 2, stages.StageContext(noise, sampling, 2, progress.append))
    (alone,) = stages.complete(model, items[1:], [nothing], stages.StageContext(noise[1:], sampling, 2))
    assert torch.equal(both[1], alone)
    assert both[0].min() >= 0
    assert sum(progress) == 2 * frames * SPEC.fine


def test_windows_grow_and_each_makes_the_end_of_the_one_before_anew(model):
    windows = list(itertools.islice(model.fillings(70), 9))
    assert [end - made for _, made, end in windows[:6]] == [25, 50, 100, 200, 400, 450]  # 10 s with 1 s before it
    assert [made for _, made, _ in windows] == [70] + [end - 5 for *_, end in windows[:-1]]
    assert all(first == max(0, made - 50) for first, made, _ in windows)


def test_the_beginning_does_not_depend_on_how_long_it_goes_on(model):
    coarse, known, sampling = codes(300, 3)[: SPEC.coarse], codes(20, 3), StageSampling(1.0, 0, 0.9)
    (long,) = stages.complete(model, [coarse], [known], stages.StageContext([Noise(1, 0, 0)], sampling, 1))
    (short,) = stages.complete(model, [coarse[:, :100]], [known], stages.StageContext([Noise(1, 0, 0)], sampling, 1))
    settled = list(itertools.islice(model.fillings(20), 3))[2][1]
    assert settled == 20 + 25 + 50 - 2 * 5
    assert torch.equal(long[:, :settled], short[:, :settled])


def test_training_loss_starts_at_a_uniform_guess_and_has_gradients():
    torch.manual_seed(0)
    model = ParallelTransformer(dataclasses.replace(preset("tiny").coarse, layout="parallel"), SPEC)
    batch = torch.stack([codes(50, seed) for seed in range(8)])
    loss = model.training_loss(Batch(batch, batch[:, :0], 50))
    assert loss.item() == pytest.approx(math.log(SPEC.codebook_size), abs=0.05)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
