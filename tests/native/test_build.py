"""How the native kernel is compiled, found and chosen, and that the program says where it is not."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from audiolm_cli import native
from audiolm_cli.bundles import bundle
from audiolm_cli.config import preset
from audiolm_cli.errors import UsageError
from audiolm_cli.language_models import engine
from audiolm_cli.language_models.frames import FrameTransformer
from audiolm_cli.native import build
from audiolm_cli.native.model import give, prepare
from tests.helpers.kernels import generated
from tests.language_models.test_engine import coarse_item, coarse_model
from tests.native.test_native import LIVELY, needs_kernel, state_of

needs_compiler = pytest.mark.skipif(not build.compiler(), reason="there is no C compiler here")


@needs_kernel
def test_a_loaded_bundle_is_decoded_natively(tiny_bundle, monkeypatch) -> None:
    monkeypatch.delenv("AUDIOLM_KERNEL", raising=False)
    loaded = bundle.load(str(tiny_bundle), device="cpu")
    assert loaded.kernel == "native"
    assert loaded.semantic.native is not None
    assert loaded.coarse.native is not None
    item = coarse_item(6, 4, 0, "frames")
    expected = generated(loaded.coarse.native, [item], LIVELY, 1)
    assert torch.equal(engine.generate(loaded.coarse, [item], LIVELY, 1)[0], expected[0])
    monkeypatch.setenv("AUDIOLM_KERNEL", "torch")
    other = bundle.load(str(tiny_bundle), device="cpu")
    assert (other.kernel, other.coarse.native) == ("torch", None)


def test_the_dtype_of_the_module_does_not_matter(best) -> None:
    model, item = coarse_model("frames"), coarse_item(6, 4, 0, "frames")
    bundle.round_to_disk(model)
    found = [state_of(prepare(model.to(dtype), best), item) for dtype in (torch.float32, torch.bfloat16)]
    assert np.array_equal(found[0], found[1])


def test_other_sizes_go_through_torch() -> None:
    config = dataclasses.replace(preset("tiny").coarse, width=24)
    model = FrameTransformer(config, preset("tiny").tokens)
    give(model)
    assert model.native is None


def test_a_kernel_that_is_not_here_is_said(monkeypatch, tmp_path, audiolm) -> None:
    monkeypatch.setenv("AUDIOLM_KERNEL", "sse9")
    code, _, err = audiolm("--version")
    assert (code, "AUDIOLM_KERNEL: must be one of" in err) == (2, True)
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    native.library.cache_clear()
    try:
        monkeypatch.setenv("AUDIOLM_KERNEL", "native")
        with pytest.raises(UsageError, match="not compiled"):
            native.kernel()
        monkeypatch.delenv("AUDIOLM_KERNEL")
        assert native.kernel() is None
        assert native.described() == "torch"
    finally:
        native.library.cache_clear()


def test_what_was_compiled_of_another_source_is_not_used(best, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(build, "source", lambda: "0123")
    assert native.declared(best) is None


def test_without_the_kernel_it_says_once_that_it_is_slower(tiny_bundle, monkeypatch, audiolm, prompt) -> None:
    monkeypatch.delenv("AUDIOLM_KERNEL", raising=False)
    monkeypatch.setattr(native, "kernel", lambda: None)
    code, _, err = audiolm("continue", prompt, "-m", tiny_bundle, "-o", "a.wav", "-n", 2, "--duration", 0.2)
    assert code == 0
    assert err.count("native kernel is not compiled") == 1


def test_without_a_compiler_nothing_is_built_and_nothing_fails(tmp_path) -> None:
    folder = tmp_path / "native"
    folder.mkdir()
    for file in build.FOLDER.glob("*.[ch]"):
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "build.py").write_bytes(Path(build.__file__).read_bytes())
    (folder / "plain.so").write_bytes(b"of before")
    for environment, says in (({"PATH": str(tmp_path)}, "no C compiler"), ({"CC": "false"}, "false failed")):
        script = [sys.executable, folder / "build.py"]
        done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"no native kernel ({says})")
        assert not list(folder.glob("*.so"))


@pytest.mark.slow
@needs_compiler
def test_what_is_compiled_of_this_source_is_kept(tmp_path, monkeypatch) -> None:
    for file in [*build.FOLDER.glob("*.[ch]"), build.FOLDER / "build.py"]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    assert build.build().startswith("native kernels: ")
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.so")}
    monkeypatch.setenv("CC", "")
    assert build.build().startswith("native kernels: ")
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*.so")} == kept
    (tmp_path / "sampling.h").write_text("")
    assert build.build().startswith("no native kernel (no C compiler)")
    assert not list(tmp_path.glob("*.so"))


@pytest.mark.slow
@needs_compiler
def test_the_kernel_for_avx512_compiles(tmp_path) -> None:
    if "x86_64" not in os.uname().machine:
        pytest.skip("another kind of processor")
    assert not build.compile_kernel(build.KERNELS["avx512"], tmp_path / "avx512.so")
