"""Twins of public checkpoints, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.twins import write_llama_mimi, write_mimi, write_soda

WINDOW = 30  # frames that both hear at once, 2.4 s


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `soda`, `llama-mimi` and `mimi`."""
    folder = tmp_path_factory.mktemp("twins")
    write_soda(folder / "soda", max_position_embeddings=8 * WINDOW + 2)
    write_llama_mimi(folder / "llama-mimi", max_position_embeddings=4 * WINDOW + 2)
    write_mimi(folder / "mimi")
    return folder
