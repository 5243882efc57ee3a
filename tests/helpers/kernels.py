"""Fixtures: the native kernels that tests run, as installed or compiled with sanitizers (AUDIOLM_SANITIZE=1)."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from audiolm_cli import native
from audiolm_cli.native import build

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
        found = native.load(name)
        if found is None:
            pytest.skip(f"the kernel {name} is not compiled here, or not for this processor")
        return found
    plain = native.load("plain")
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


@pytest.fixture(scope="session")
def best(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernel that the program would use."""
    name = next((name for name in build.KERNELS if native.load(name)), None)
    if name is None:
        pytest.skip("the native kernel is not compiled here")
    found = native.load(name)
    assert found is not None
    return compiled(OPTIONS[name], tmp_path_factory.mktemp("kernels") / "best.so") if SANITIZED else found
