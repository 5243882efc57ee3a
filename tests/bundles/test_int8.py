"""Format version 2: what is stored in int8 is what the kernel multiplies by, and what is damaged is one clear line."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from audiolm_cli import native
from audiolm_cli.bundles import bundle, int8
from audiolm_cli.bundles.folder import read_config
from audiolm_cli.config import preset
from audiolm_cli.errors import ModelError
from audiolm_cli.native import model as kernel
from audiolm_cli.training.corpora.tokenize import load_part
from audiolm_cli.training.parts.assemble import assemble, main, quantize, unpack, write_sums
from tests.helpers.bundles import modules, write_bundle, write_parts

STAGES = ("semantic", "coarse", "fine")
MATRIX = "blocks.0.up.weight"  # of stages


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", in_int8=True)


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def load(folder: Path, dtype: str = "float32") -> bundle.Bundle:
    """With sums of what is there: as somebody who means harm would write them."""
    write_sums(folder)
    return bundle.load(str(folder), device="cpu", dtype=dtype)


@settings(max_examples=200)
@given(st.integers(1, 40), st.integers(1, 80), st.integers(0, 999), st.sampled_from([0, 1e-40, 1e-29, 1e-3, 1, 1e30]))
def test_what_is_quantized_again_stays_to_the_bit(rows: int, width: int, seed: int, size: float) -> None:
    random = np.random.default_rng(seed)
    weight = torch.from_numpy(
        size * random.standard_normal((rows, width)) * random.choice([0, 1, 9], (rows, 1))
    ).float()
    values, scales = int8.quantized(weight)
    assert int8.fault(values, scales) is None
    exact = values.double() * scales.double()[:, None]
    floats = int8.restored({"w": values, "w.scale": scales})["w"]
    assert torch.equal(floats.double(), exact)
    assert ((exact - weight).abs() <= scales[:, None] * 0.501 + 128 * int8.SMALLEST).all()
    again = int8.quantized(floats)
    assert torch.equal(again[0], values)
    assert torch.equal(again[1], scales)
    native_values, native_scales = kernel.quantized(floats.numpy())
    assert np.array_equal(native_values, values)
    assert np.array_equal(native_scales, scales)


def test_scales_hardly_differ_from_those_of_the_kernel() -> None:
    weight = torch.randn(500, 256, generator=torch.Generator().manual_seed(0))
    values, scales = int8.quantized(weight)
    native_values, native_scales = kernel.quantized(weight.numpy())
    assert np.abs(scales.numpy() / native_scales - 1).max() < 2**-17
    assert (values.numpy() != native_values).mean() < 1e-4


def test_a_bundle_stores_matrices_in_int8(original: Path) -> None:
    assert json.loads((original / "config.json").read_text())["format_version"] == 2
    for part in ("tokenizer", *STAGES):
        tensors = load_file(original / f"{part}.safetensors")
        wide = {n for n, t in tensors.items() if n.endswith("weight") and t.ndim > 1 and t[0].numel() >= int8.LEAST_ROW}
        assert wide
        assert {n for n, t in tensors.items() if t.dtype == torch.int8} == wide, part
        assert {n for n, t in tensors.items() if t.dtype == torch.float32} == {n + ".scale" for n in wide}
    codec = load_file(original / "codec.safetensors")  # whose encoder and codebooks make tokens
    assert {n.split(".")[0] for n, t in codec.items() if t.dtype == torch.int8} == {"decoder"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_values_reach_the_kernel_whatever_the_dtype(original: Path, dtype: str, monkeypatch) -> None:
    if native.kernel() is None:
        pytest.skip("the native kernel is not compiled here")
    monkeypatch.delenv("AUDIOLM_KERNEL", raising=False)
    loaded = bundle.load(str(original), device="cpu", dtype=dtype)
    for stage in ("semantic", "coarse"):
        stored, ready = load_file(original / f"{stage}.safetensors"), getattr(loaded, stage).native.model
        for name, matrix in ((MATRIX, ready.blocks[0].up), ("ids.weight", ready.head)):
            values, scales = stored[name].numpy(), stored[name + ".scale"].numpy()
            wanted = kernel.packed(values)
            assert np.array_equal(np.ctypeslib.as_array(matrix.values, wanted.shape), wanted)
            assert np.array_equal(np.ctypeslib.as_array(matrix.scales, scales.shape), scales)
        embeddings = np.ctypeslib.as_array(ready.ids, values.shape)
        assert np.array_equal(embeddings, values * scales[:, None])


def test_torch_gets_floats_of_its_dtype(original: Path, monkeypatch) -> None:
    monkeypatch.setenv("AUDIOLM_KERNEL", "torch")
    stored = load_file(original / "fine.safetensors")
    exact = stored[MATRIX] * stored[MATRIX + ".scale"][:, None]
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        fine: Any = bundle.load(str(original), device="cpu", dtype=name).fine
        if not fine.packed:
            assert torch.equal(fine.state_dict()[MATRIX], exact.to(dtype))
    tokenizer, stored = (
        bundle.load(str(original), device="cpu").tokenizer,
        load_file(original / "tokenizer.safetensors"),
    )
    name = "layers.0.conv_module.sequential.0.weight"  # [outputs, inputs, 1]
    assert torch.equal(tokenizer.state_dict()[name], stored[name] * stored[name + ".scale"][:, None, None])


def test_what_is_rounded_is_what_is_read(tmp_path: Path) -> None:
    for part, module in modules(preset("tiny")).items():
        matrices = int8.MATRICES.get(part, ())
        bundle.round_to_disk(module, matrices)
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        file = tmp_path / f"{part}.safetensors"
        bundle.save_part(file, module, {}, matrices)
        read = int8.restored(bundle.read_tensors(file, before))
        assert all(torch.equal(read[name].to(before[name].dtype), before[name]) for name in before), part
        written = file.read_bytes()
        bundle.save_part(file, module, {}, matrices)
        assert file.read_bytes() == written


# ---------------------------------------------------------------------------------------------------- identities


def test_identities_of_version_1_are_what_they_were() -> None:
    tensors = {
        "a.weight": torch.linspace(-1, 1, 12).view(3, 4),
        "a.scale": torch.linspace(0.1, 0.3, 3),
        "n": torch.tensor(7),
    }
    assert bundle.tensors_identity(tensors) == "11366ab9c24c837ea3af0f8afa42ecb7558a61e46937a90ed870444dee411a74"


def test_identities_are_of_what_is_stored(original: Path) -> None:
    config, stored = read_config(original), load_file(original / "tokenizer.safetensors")
    identity = bundle.tensors_identity(stored)
    assert config.depends["tokenizer"]["self"] == config.depends["semantic"]["tokenizer"] == identity
    assert bundle.tensors_identity(int8.restored(stored)) != identity
    name = "input.weight"
    for changed in (name, name + ".scale"):
        other = {**stored, changed: stored[changed].clone()}
        other[changed].view(torch.uint8).view(-1)[0] ^= 1  # the last bit of the first one
        assert bundle.tensors_identity(other) != identity


def test_the_tokens_of_a_tokenizer_and_its_int8_are_not_mixed(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    write_parts(parts, preset("tiny"))
    quantize(parts, ["tokenizer"])
    with pytest.raises(ModelError, match="tokens of another tokenizer"):
        assemble(parts, "tiny", tmp_path / "tiny")


# -------------------------------------------------------------------------------------------- writing, version 1


def test_version_1_is_written_and_read_without_int8(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "tiny")
    assert json.loads((folder / "config.json").read_text())["format_version"] == 1
    bundle.check_parts(folder)
    unpack(folder, tmp_path / "runs" / "parts")
    _, before = load_part(tmp_path / "runs", "tokenizer")
    assert before == read_config(folder).depends["tokenizer"]["self"]


def test_stages_become_int8_and_go_on_from_the_same_tokens(tmp_path: Path, monkeypatch) -> None:
    old, parts = write_bundle(tmp_path / "old"), tmp_path / "parts"
    unpack(old, parts)
    (parts / "detector.safetensors").unlink()  # which knows the outputs of other weights
    sizes = {stage: (parts / f"{stage}.safetensors").stat().st_size for stage in STAGES}
    monkeypatch.setattr(sys, "argv", ["assemble", "--runs", str(tmp_path), "--quantize", "codec", *STAGES])
    main()
    once = {file.name: file.read_bytes() for file in parts.iterdir()}
    assert all(len(once[f"{stage}.safetensors"]) < 0.75 * size for stage, size in sizes.items())
    quantize(parts, ["codec", *STAGES])
    assert {file.name: file.read_bytes() for file in parts.iterdir()} == once
    assemble(parts, "tiny", tmp_path / "new")
    new = read_config(tmp_path / "new")
    assert (new.format_version, read_config(old).format_version) == (2, 1)
    for part in ("codec", "tokenizer"):
        assert new.depends[part] == read_config(old).depends[part]
    again = tmp_path / "runs" / "parts"
    unpack(tmp_path / "new", again)
    assemble(again, "tiny", tmp_path / "newer")
    assert (tmp_path / "newer" / "SHA256SUMS").read_text() == (tmp_path / "new" / "SHA256SUMS").read_text()


def test_the_commands_work_with_version_2(original: Path, prompt: Path, audiolm, tmp_path: Path) -> None:
    assert audiolm("models", "verify", original)[0] == 0
    assert audiolm("models", "show", original)[0] == 0
    common = ("-m", original, "--duration", "0.4", "--seed", "1", "--batch-size", "1")
    assert audiolm("continue", prompt, "-o", tmp_path / "a.wav", *common)[0] == 0
    assert audiolm("encode", prompt, "-o", tmp_path / "a.safetensors", "-m", original)[0] == 0
    assert audiolm("decode", tmp_path / "a.safetensors", "-o", tmp_path / "b.wav", "-m", original)[0] == 0


# -------------------------------------------------------------------------------------------------------- refused


def change(folder: Path, part: str, made: Any) -> None:
    file = folder / f"{part}.safetensors"
    tensors = load_file(file)
    made(tensors)
    save_file(tensors, file)


def first(tensors: dict[str, Tensor], name: str, value: float) -> None:
    tensors[name].view(-1)[0] = value


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda t: t.pop(MATRIX + ".scale"), f"tensor {MATRIX}.scale is missing"),
        (
            lambda t: t.update({MATRIX + ".scale": torch.ones(3)}),
            rf"{MATRIX}.scale has shape \[3\], config.json implies",
        ),
        (lambda t: t.update({MATRIX + ".scale": torch.ones(64, 1)}), r"scale has shape \[64, 1\]"),
        (lambda t: t.update({MATRIX + ".scale": t[MATRIX + ".scale"].double()}), "scales of dtype torch.float64"),
        (lambda t: t.update({MATRIX: t[MATRIX].float()}), f"tensor {MATRIX}.scale does not belong there"),
        (lambda t: t.update({MATRIX: t[MATRIX].int()}), f"tensor {MATRIX}.scale does not belong there"),
        (
            lambda t: t.update({"norm.weight": t["norm.weight"].to(torch.int8)}),
            "tensor norm.weight has dtype torch.int8",
        ),
        (lambda t: t.update({"norm.weight.scale": torch.ones(32)}), "tensor norm.weight.scale does not belong there"),
        *(
            (
                lambda t, value=value: first(t, MATRIX + ".scale", value),
                f"tensor {MATRIX} has scales that are no numbers",
            )
            for value in (float("nan"), float("inf"), -1.0, 1e-38, 3e38)
        ),
        (lambda t: first(t, MATRIX + ".scale", 1 / 3), "scales of more than 17 bits"),
        (lambda t: first(t, MATRIX + ".scale", 0), "a row whose largest magnitude is not 127"),
        (lambda t: first(t, MATRIX, -128), "a row whose largest magnitude is not 127"),
        (lambda t: t[MATRIX][0].fill_(100), "a row whose largest magnitude is not 127"),
    ],
)
def test_damaged_matrices_are_refused(folder: Path, made: Any, says: str) -> None:
    change(folder, "coarse", made)
    with pytest.raises(ModelError, match=says) as error:
        _ = load(folder).coarse
    assert str(error.value).startswith(f"{folder}/coarse.safetensors: tensor ")
    assert "\n" not in str(error.value)


def test_matrices_in_int8_need_version_2(folder: Path) -> None:
    value = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**value, "format_version": 1}))
    with pytest.raises(ModelError, match=r"codec\.safetensors: has matrices in int8, which format_version 1"):
        _ = load(folder).codec


def test_a_part_that_is_not_there_cannot_be_quantized(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"codec\.safetensors: not a part"):
        quantize(tmp_path, ["codec"])
