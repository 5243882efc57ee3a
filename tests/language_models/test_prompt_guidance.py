"""Guidance of stage 1: away from the model that does not know what comes before a window's new tokens."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from audiolm_cli import pipeline
from audiolm_cli.config import StageSampling
from audiolm_cli.language_models.sampling import Noise
from audiolm_cli.language_models.semantic import SemanticTransformer
from audiolm_cli.language_models.stages import StageContext, continue_semantic
from audiolm_cli.pipeline import Prompt
from audiolm_cli.request import GenerateRequest
from tests.helpers.bundles import with_short_windows
from tests.helpers.continuing import SAMPLING, run
from tests.helpers.sounds import noise

STRENGTH, WINDOW = 6.0, 25
KNOWN, TOTALS = [[12, 3, 4, 5, 6, 1, 9], [], [2, 2, 9, 2]], [60, 45, 20]


def logits(model: SemanticTransformer, tokens: list[int]) -> Tensor:
    sequence = model.sequence(torch.tensor(tokens, dtype=torch.int64))
    hidden = model(sequence.ids[None], sequence.fields[None])[0, -1]
    return model.logits(hidden, 0, model.vocabulary.choices).double()


def made(model: SemanticTransformer, which: list[int], guidance: float, **how: Any) -> list[list[int]]:
    known = [torch.tensor(KNOWN[n], dtype=torch.int64) for n in which]
    sampling = StageSampling(how.pop("temperature", 1.0), 0, 0.9, guidance)
    context = StageContext([Noise(5, n, 0) for n in which], sampling, 4)
    return [tokens.tolist() for tokens in continue_semantic(model, known, [TOTALS[n] for n in which], context, **how)]


def test_tokens_are_the_likeliest_by_what_the_beginning_changes(model: SemanticTransformer) -> None:
    (got,) = made(model, [0], STRENGTH, temperature=0.0)
    near = 0.3 if model.native else 1e-4  # weights of eight bits, the differences of which guidance multiplies
    first, begin, changed = 0, len(KNOWN[0]), 0
    for place in range(begin, len(got)):
        if place == first + WINDOW:  # the next window begins with half a one that is known
            first, begin = place - WINDOW // 2, place
        with torch.inference_mode():
            own, without = logits(model, got[first:place]), logits(model, got[begin:place])
        guided = own + STRENGTH * (own - without)
        assert guided[got[place]] >= guided.max() - near * guided.std()
        changed += int(own.argmax()) != got[place]
    assert changed > 3


def test_guided_tokens_depend_neither_on_the_batch_nor_on_an_end_that_does_not_come(model: SemanticTransformer) -> None:
    alone = [made(model, [n], STRENGTH)[0] for n in range(3)]
    assert made(model, [2, 0, 1], STRENGTH) == [alone[2], alone[0], alone[1]]
    free = made(model, [1], 0.0)[0]
    assert alone[1][:WINDOW] == free[:WINDOW]  # nothing comes before its first window
    assert alone[1] != free
    ending = made(model, [0], STRENGTH, until_end=True)[0]
    assert ending == made(model, [0, 2], STRENGTH, until_end=True)[0]
    assert ending != made(model, [0], 0.0, until_end=True)[0][: len(ending)]


def test_a_request_has_it_from_the_bundle_unless_it_says_otherwise(tmp_path: Any) -> None:
    loaded = with_short_windows(tmp_path)
    free = run(loaded, [Prompt(noise(1))])[0].semantic
    own = dataclasses.replace(loaded.config.sampling, prompt_guidance=2.0)
    loaded.config = dataclasses.replace(loaded.config, sampling=own)
    held, off = (run(loaded, [Prompt(noise(1))], **how)[0].semantic for how in ({}, {"prompt_guidance": 0}))
    assert torch.equal(free, off)
    assert not torch.equal(free, held)
    generated = next(pipeline.generate(loaded, GenerateRequest(duration=2.0, **SAMPLING))).semantic
    assert len(generated) == 50
