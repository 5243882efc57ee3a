"""Long pauses end: which tokens make sampling hotter, by both engines, for every batch and window."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from audiolm_cli.language_models import engine
from audiolm_cli.language_models.pauses import HEAT, Pause, PauseLimit
from audiolm_cli.language_models.sampling import Noise, StageSampling, sample
from audiolm_cli.language_models.semantic import SemanticTransformer
from audiolm_cli.language_models.stages import StageContext, continue_semantic
from tests.helpers import int8_model
from tests.language_models.test_engine import coarse_model, four_items, slow_generate

LIVELY = StageSampling(1.0, 0, 0.9)
LIMIT = PauseLimit(frozenset(range(9)), 2, 3)  # of 16 tokens
KNOWN = [[12, 3, 4, 5, 6, 1], [12, 3, 4], [], [2, 2, 9, 2, 9, 9]]
TOTALS = [70, 13, 45, 6]


def heats(limit: PauseLimit, tokens: list[int]) -> list[float]:
    """At which factor each token would be sampled."""
    pause, found = Pause(limit), []
    for token in tokens:
        found.append(pause.heat)
        pause.add([token])
    return found


def test_a_pause_becomes_hot_beyond_its_limit_until_three_others_follow() -> None:
    limit = PauseLimit(frozenset({0}), 2, 3)
    assert heats(limit, [0, 0, 0, 0, 7, 0, 7, 7, 0, 7, 7, 7, 0, 0, 0, 0]) == [1, 1, 1, *[2] * 9, 1, 1, 1, 2]
    assert heats(limit, [0, 7, 7, 0, 7, 7, 7, 0]) == [1] * 8
    assert Pause(limit, [7, 0, 0, 0]).heat == HEAT  # a prompt's own
    assert Pause(limit, [0, 0, 0, 7, 7, 7]).heat == 1


def test_a_limit_in_seconds() -> None:
    assert PauseLimit.of([3, 5], 1.0, 25) == PauseLimit(frozenset({3, 5}), 25, 3)
    assert PauseLimit.of([3], 0.28, 25).longest == 7  # in floats, 0.28 * 25 is more
    assert PauseLimit.of([3], 0.001, 25).longest == 0
    assert PauseLimit.of([3], 1.0, 5).revived == 1


def stepped(generation: engine.Generation, wanted: list[list[float]]) -> list[Tensor]:
    """What a batch samples at each item's factors of the temperature."""
    with contextlib.closing(generation):  # type: ignore[type-var]
        for n in range(max(map(len, wanted))):
            for number, own in enumerate(wanted):
                if n < len(own):
                    generation.heat(number, own[n])
            generation.advance(1)
        return [generation.ids(number) for number in range(len(wanted))]


def some_heats(steps: int, seed: int) -> list[float]:
    return np.random.default_rng(seed).choice([1.0, 1.5, 2.0, 30.0], steps).tolist()


@pytest.mark.parametrize("layout", ["aligned", "frames"])
def test_torch_samples_at_the_factors_that_it_is_told(layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, items = coarse_model(layout), four_items(layout)
    wanted = [some_heats(len(item.uniform), n) for n, item in enumerate(items)]
    made = stepped(engine.start(model, items, LIVELY, 4), wanted)
    for item, own, got in zip(items, wanted, made, strict=True):
        assert torch.equal(got, slow_generate(model, item, 1.0, 0.9, own))
    monkeypatch.setattr(engine, "use_graphs", lambda device: True)
    monkeypatch.setattr(engine, "_captured", lambda steps, device: steps)
    for _ in range(2):
        again = stepped(engine.start(model, items, LIVELY, 4), wanted)
        assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    plain = engine.generate(model, items, LIVELY, 4)  # in the same buffers
    assert all(torch.equal(got, slow_generate(model, i, 1.0, 0.9)) for i, got in zip(items, plain, strict=True))
    assert not torch.equal(plain[3], made[3])


def test_both_engines_draw_alike_when_hot() -> None:
    random = np.random.default_rng(0)
    logits, numbers = 3 * random.standard_normal((200, 50)).astype(np.float32), random.random(200, np.float32)
    heat = torch.from_numpy(random.choice([1.0, 2.0], 200).astype(np.float32))
    expected = sample(torch.from_numpy(logits), torch.from_numpy(numbers), 0.9, 0, 0.9, heat)
    hot = [dataclasses.replace(LIVELY, temperature=0.9 * float(factor)) for factor in heat]
    assert expected.tolist() == [int8_model.draw(*row) for row in zip(logits, numbers, hot, strict=True)]


def made(model: SemanticTransformer, which: list[int], limit: PauseLimit | None, batch_size: int) -> list[Tensor]:
    known, noise = [torch.tensor(KNOWN[n], dtype=torch.int64) for n in which], [Noise(5, n, 0) for n in which]
    totals = [TOTALS[n] for n in which]
    return continue_semantic(model, known, totals, StageContext(noise, LIVELY, batch_size, pauses=limit))


def test_the_stage_samples_as_its_own_tokens_say(model: SemanticTransformer) -> None:
    """One window, token by token, each as the only one that is asked for."""
    (got,) = made(model, [1], LIMIT, 4)
    tokens, hot = list(KNOWN[1]), 0
    for place in range(len(tokens), TOTALS[1]):
        pause = Pause(LIMIT, tokens)
        hot += pause.heat > 1
        how = dataclasses.replace(LIVELY, temperature=pause.heat)
        known = torch.tensor(tokens)
        tokens = continue_semantic(model, [known], [place + 1], StageContext([Noise(5, 1, 0)], how, 4))[0].tolist()
    assert got.tolist() == tokens
    assert hot


def test_tokens_depend_neither_on_the_batch_nor_on_what_is_asked_for_at_a_time(model: SemanticTransformer) -> None:
    alone = [made(model, [n], LIMIT, 4)[0] for n in range(4)]
    for which in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0]):
        for got, n in zip(made(model, which, LIMIT, 4), which, strict=True):
            assert torch.equal(got, alone[n])
    free = made(model, [0, 1, 2, 3], None, 4)
    assert not torch.equal(free[0], alone[0])
    never = made(model, [0, 1, 2, 3], dataclasses.replace(LIMIT, longest=100), 4)
    assert all(torch.equal(a, b) for a, b in zip(free, never, strict=True))
