from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")

from audiolm_cli.bundles import bundle as bundles
from tests.helpers.server import Served, serve


@pytest.fixture(scope="session")
def tiny(tiny_bundle: Path) -> bundles.Bundle:
    torch.set_num_threads(1)
    return bundles.load(str(tiny_bundle), device="cpu")


@pytest.fixture(scope="session")
def pausing(tiny: bundles.Bundle) -> bundles.Bundle:
    """The same model, which knows the tokens of its pauses and limits them."""
    made = copy.copy(tiny)
    made.config = dataclasses.replace(tiny.config, pause_tokens=tuple(range(8)), max_pause=1.5)
    return made


@pytest.fixture(scope="session")
def served(tiny: bundles.Bundle) -> Iterator[Served]:
    with serve(tiny, streams=3, queue=8, max_seconds=20, max_megabytes=1) as running:
        yield running
