"""How strange a recording is to a bundle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiolm_cli import bundle, pipeline
from audiolm_cli.config import Layout, preset
from audiolm_cli.likelihood import SEMANTIC_SHARE, stack, surprise, token_losses
from audiolm_cli.pipeline import Prompt, Sampling
from audiolm_cli.tokens import semantic_sequence
from tests.bundles import write_bundle

SOUND = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)


@pytest.fixture(params=["frames", "aligned"])
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> bundle.Bundle:
    layout: Layout = request.param
    config = preset("tiny")
    config = dataclasses.replace(config, coarse=dataclasses.replace(config.coarse, layout=layout), familiar_bits=1.0)
    return bundle.load(str(write_bundle(tmp_path / "tiny", config)), device="cpu", dtype="float32")


def test_codes_are_strange_token_by_token_and_semantic_tokens_as_a_whole(tiny: bundle.Bundle) -> None:
    models, tokens = (tiny.semantic, tiny.coarse), pipeline.encode(tiny, SOUND)
    single = [surprise(*models, tokens.semantic[n : n + 1], tokens.codes[:, 2 * n : 2 * n + 2]) for n in range(13)]
    ids = tokens.semantic
    first = bits(tiny, *(ids[n : n + 1] for n in range(13))) * SEMANTIC_SHARE
    whole = bits(tiny, ids) * SEMANTIC_SHARE
    assert surprise(*models, ids, tokens.codes) == pytest.approx(np.mean(single) - first + whole, abs=1e-3)
    swapped = tokens.codes.view(12, -1, 2).flip(1).reshape(12, -1)  # other codes for each semantic token
    assert surprise(*models, ids, swapped) != pytest.approx(surprise(*models, ids, tokens.codes), abs=1e-3)


def bits(tiny: bundle.Bundle, *pieces: torch.Tensor) -> float:
    """Per semantic token, of pieces of one length."""
    spec, length = tiny.config.tokens, len(pieces[0])
    sequences = [semantic_sequence(spec, tiny.config.semantic.layout, piece) for piece in pieces]
    losses = token_losses(tiny.semantic, stack(sequences, "semantic", spec, length, [False] * len(pieces)))
    return float(losses[:, :-1].mean()) / np.log(2)


def test_outputs_say_how_strange_their_prompts_were(tiny: bundle.Bundle) -> None:
    common: dict[str, Any] = {"sampling": Sampling((1.0,) * 3, (0,) * 3, (1.0,) * 3), "batch_size": 2}
    prompts = [Prompt(SOUND), Prompt(SOUND, sample=1)]
    tokens = pipeline.encode(tiny, SOUND[-6400:])
    expected = surprise(tiny.semantic, tiny.coarse, tokens.semantic, tokens.codes)
    made = list(pipeline.continue_(tiny, prompts, duration=0.2, prompt_seconds=0.4, **common))
    assert [output.surprise for output in made] == [expected] * 2
    (again,) = pipeline.resynth(tiny, [Prompt(SOUND[-6400:])], **common)
    assert again.surprise == expected
    (free,) = pipeline.generate(tiny, [Prompt(SOUND[:0])], duration=0.2, **common)
    assert free.surprise is None


def test_a_bundle_that_does_not_say_is_not_asked(tiny: bundle.Bundle) -> None:
    file = tiny.folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "familiar_bits": 0.0}))
    loaded = bundle.Bundle(tiny.folder, bundle.read_config(tiny.folder), torch.device("cpu"), torch.float32)
    sampling = Sampling((1.0,) * 3, (0,) * 3, (1.0,) * 3)
    (output,) = pipeline.resynth(loaded, [Prompt(SOUND)], sampling=sampling, batch_size=1)
    assert output.surprise is None
