"""How strange a recording is to a bundle, and how likely to be its own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolm_cli import pipeline
from audiolm_cli.audio import postfilter
from audiolm_cli.bundles import bundle
from audiolm_cli.config import Layout, preset
from audiolm_cli.language_models.likelihood import (
    FEATURES,
    SEMANTIC_WEIGHT,
    SPAN,
    likelihood_features,
    ood_scores,
    prompt_gain,
    token_features,
)
from audiolm_cli.language_models.transformer import cross_entropy
from audiolm_cli.pipeline import Prompt
from audiolm_cli.request import ContinueRequest, GenerateRequest, ResynthRequest
from tests.helpers.bundles import write_bundle

SOUND = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)


@pytest.fixture(params=["frames", "plain"])
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> bundle.Bundle:
    layout: Layout = request.param
    config = preset("tiny")
    config = dataclasses.replace(config, coarse=dataclasses.replace(config.coarse, layout=layout), familiar_bits=1.0)
    return bundle.load(str(write_bundle(tmp_path / "tiny", config)), device="cpu", dtype="float32")


def test_codes_are_strange_span_by_span_and_semantic_tokens_as_a_whole(tiny: bundle.Bundle) -> None:
    """Against the losses of each span by itself; 13 tokens are three spans and a rest of one."""
    tokens = pipeline.encode(tiny, SOUND)
    ids, codes = tokens.semantic[:13], tokens.codes[: tiny.config.tokens.coarse, :26]
    spans = [(ids[n : n + SPAN], codes[:, 2 * n : 2 * (n + SPAN)]) for n in range(0, 13, SPAN)]
    losses = torch.cat([tiny.coarse.token_losses(tiny.coarse.batch([span])).flatten() for span in spans])
    whole = float(tiny.semantic.token_losses(tiny.semantic.batch([(ids, ids[:0])])).mean()) / np.log(2)
    found = ood_scores(tiny.semantic, tiny.coarse, ids, tokens.codes)
    assert found.semantic == pytest.approx(whole, abs=1e-3)
    assert found.surprise == pytest.approx(float(losses.mean()) / np.log(2) + SEMANTIC_WEIGHT * whole, abs=1e-3)
    swapped = tokens.codes.view(12, -1, 2).flip(1).reshape(12, -1)  # other codes for each semantic token
    assert ood_scores(tiny.semantic, tiny.coarse, ids, swapped).surprise != pytest.approx(found.surprise, abs=1e-4)


def test_what_a_prompt_does_for_its_continuation(tiny: bundle.Bundle) -> None:
    """Against the losses of one batch; a prompt of nothing does nothing."""
    tokens = pipeline.encode(tiny, SOUND).semantic
    prompt, continuation = tokens[:5], tokens[5:]

    def bits(tokens: torch.Tensor) -> torch.Tensor:
        return tiny.semantic.token_losses(tiny.semantic.batch([(tokens, tokens[:0])]))[0] / np.log(2)

    expected = bits(continuation).mean() - bits(tokens)[5:].mean()
    assert prompt_gain(tiny.semantic, prompt, continuation) == pytest.approx(float(expected), abs=1e-6)
    assert expected != 0
    assert prompt_gain(tiny.semantic, prompt[:0], continuation) == 0


def test_outputs_say_how_strange_their_prompts_were(tiny: bundle.Bundle) -> None:
    prompts = [Prompt(SOUND), Prompt(SOUND, sample=1)]
    tokens = pipeline.encode(tiny, postfilter.without_rumble(SOUND[-6400:], 16000, 70.0))
    expected = ood_scores(tiny.semantic, tiny.coarse, tokens.semantic, tokens.codes).surprise
    made = list(pipeline.continue_(tiny, ContinueRequest(duration=0.2, prompt_seconds=0.4), prompts))
    assert [output.surprise for output in made] == [expected] * 2
    (again,) = pipeline.resynth(tiny, ResynthRequest(), [Prompt(SOUND[-6400:])])
    assert again.surprise == expected
    (free,) = pipeline.generate(tiny, GenerateRequest(duration=0.2))
    assert free.surprise is None


def test_a_bundle_that_does_not_say_is_not_asked(tiny: bundle.Bundle) -> None:
    file = tiny.folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "familiar_bits": 0.0}))
    loaded = bundle.Bundle(tiny.folder, bundle.read_config(tiny.folder), torch.device("cpu"), torch.float32)
    (output,) = pipeline.resynth(loaded, ResynthRequest(), [Prompt(SOUND)])
    assert output.surprise is None


def test_features_tell_at_which_temperature_tokens_were_drawn() -> None:
    logits = torch.randn(2, 4000, 20, generator=torch.Generator().manual_seed(0)) * 2
    means = {}
    for temperature in (0.6, 1.0, 1.5):
        drawn = torch.distributions.Categorical(logits=logits / temperature).sample()
        found = token_features(logits, drawn)
        assert found.shape == (2, 4000, FEATURES)
        assert torch.allclose(found[..., 0] + found[..., 1], cross_entropy(logits, drawn), atol=1e-5)
        likelier = (logits.softmax(-1) * (logits > logits.gather(-1, drawn[..., None]))).sum(-1)
        assert torch.allclose(found[..., 2], likelier, atol=1e-6)
        means[temperature] = found.mean((0, 1))
    assert abs(means[1.0][0]) < 0.03
    assert abs(means[0.6][3]) < 0.03
    assert means[0.6][0] < -0.2 < 0.2 < means[1.5][0]


def test_likelihood_features_are_those_of_all_stages_frame_by_frame(tiny: bundle.Bundle) -> None:
    tokens, quantizers = pipeline.encode(tiny, SOUND), tiny.config.tokens.quantizers
    found = likelihood_features(tiny.stages, tokens.semantic, tokens.codes, size=5)
    assert found.shape == (tokens.codes.shape[1], FEATURES * (1 + quantizers))
    assert torch.isfinite(found).all()
    assert torch.equal(found[0::2, :FEATURES], found[1::2, :FEATURES])  # a semantic token spans two frames
    losses = tiny.coarse.token_losses(tiny.coarse.batch([(tokens.semantic[:5], tokens.codes[:, :10])]))[0]
    coarse = found[:10, FEATURES : 5 * FEATURES].view(10, FEATURES, 4)
    assert torch.allclose(coarse[:, :2].sum(1), losses, atol=1e-4)
