"""Fixtures: the native kernels that tests run, as installed or compiled with sanitizers (AUDIOLM_SANITIZE=1)."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from audiolm_cli import native
from audiolm_cli.config import StageSampling
from audiolm_cli.language_models.tokens import Item
from audiolm_cli.native import build, decode
from audiolm_cli.native.model import Weights

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g"]
SANITIZED = SANITIZERS if os.environ.get("AUDIOLM_SANITIZE") else []
# the path for AVX-512 without its one instruction, to be run anywhere; and as if little were near the core, so that the
# items of a batch take turns
NARROW = "-DKERNEL_NEAR=32768"
OPTIONS = {**build.KERNELS, "emulated": ["-DKERNEL_AVX512", "-DKERNEL_EMULATED"], "narrow": [NARROW]}


@pytest.fixture(scope="session", params=OPTIONS)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """Each kernel that this machine can run."""
    name = request.param
    if name in build.KERNELS and not SANITIZED:
        found = native.library(name)
        if found is None:
            pytest.skip(f"the kernel {name} is not compiled here, or not for this processor")
        return found
    plain = native.library("plain")
    if not build.compiler() or plain is None:
        pytest.skip("there is no C compiler here")
    if name in build.KERNELS and not plain.audiolm_supports(name.encode()):
        pytest.skip(f"this processor cannot run the kernel {name}")
    return compiled(OPTIONS[name], tmp_path_factory.mktemp("kernels") / f"{name}.so")


def compiled(options: list[str], target: Path) -> ctypes.CDLL:
    assert not build.compile_kernel([*options, *SANITIZED], target)
    library = native.declared(ctypes.CDLL(str(target)))
    assert library is not None
    return library


def generated(
    weights: Weights, items: list[Item], sampling: StageSampling, batch_size: int,
    progress: Callable[[int], None] | None = None,
) -> list[Tensor]:  # fmt: skip
    """What `engine.generate` makes of items, by the kernel of these weights."""
    results: list[Tensor] = []
    for first in range(0, len(items), batch_size):
        batch = items[first : first + batch_size]
        with contextlib.closing(decode.Sessions(weights, batch, sampling)) as generation:
            while made := generation.advance(16):
                if progress:
                    progress(made)
            results += [generation.ids(number) for number in range(len(batch))]
    return results


@pytest.fixture(scope="session")
def best(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernel that the program would use."""
    name = next((name for name in build.KERNELS if native.library(name)), None)
    if name is None:
        pytest.skip("the native kernel is not compiled here")
    found = native.library(name)
    assert found is not None
    return compiled(OPTIONS[name], tmp_path_factory.mktemp("kernels") / "best.so") if SANITIZED else found
