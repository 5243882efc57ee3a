"""The model that tests of stage 1 share."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from audiolm_cli.config import preset
from audiolm_cli.language_models.semantic import SemanticTransformer
from audiolm_cli.native.model import prepare
from tests.helpers.bundles import modules


@pytest.fixture(scope="module", params=["torch", "native"])
def model(request: pytest.FixtureRequest) -> SemanticTransformer:
    """Stage 1 with windows of a second."""
    config = preset("tiny")
    semantic = dataclasses.replace(config.semantic, window_seconds=1.0)
    made: Any = modules(dataclasses.replace(config, semantic=semantic))["semantic"].eval()
    if request.param == "native":
        made.native = prepare(made, request.getfixturevalue("best"))
    return made
