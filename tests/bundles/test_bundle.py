"""A bundle is not trusted: what does not fit is one clear line with file and field."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from audiolm_cli.bundles import bundle
from audiolm_cli.bundles import folder as folders
from audiolm_cli.bundles.catalogue import embedded, find
from audiolm_cli.config import LAYOUTS, BundleConfig, preset
from audiolm_cli.errors import ModelError, UsageError
from audiolm_cli.fields import from_json, to_json
from audiolm_cli.language_models.kinds import KINDS
from audiolm_cli.training.parts.assemble import assemble, write_sums
from tests.helpers.bundles import write_bundle, write_parts

PARTS = ("codec", "tokenizer", "semantic", "coarse", "fine")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def load_all(folder: Path) -> bundle.Bundle:
    """With sums of what is there: as somebody who means harm would write them."""
    write_sums(folder)
    loaded = bundle.load(str(folder), device="cpu", dtype="float32")
    for part in PARTS:
        getattr(loaded, part)
    return loaded


def change_config(folder: Path, change) -> None:
    value = json.loads((folder / "config.json").read_text())
    change(value)
    (folder / "config.json").write_text(json.dumps(value))


def test_what_is_saved_is_loaded(folder: Path) -> None:
    loaded = load_all(folder)
    on_disk = load_file(folder / "coarse.safetensors")
    assert {t.dtype for t in on_disk.values()} == {torch.bfloat16}
    assert torch.equal(loaded.coarse.ids.weight, on_disk["ids.weight"].float())
    assert bundle.load(str(folder), device="cpu", dtype="bfloat16").coarse.ids.weight.dtype == torch.bfloat16
    assert next(loaded.codec.parameters()).dtype == torch.float32


def test_every_layout_that_a_config_may_name_has_a_kind() -> None:
    assert {(stage, layout) for stage in LAYOUTS for layout in LAYOUTS[stage]} == KINDS.keys()


@pytest.mark.parametrize("name", ["tiny", "speech", "paper"])
def test_configs_survive_json(name: str) -> None:
    config = preset(name)
    assert from_json(BundleConfig, json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["coarse"].update(width=10**9), "coarse.width must be between"),
        (lambda c: c["coarse"].update(width="64"), "coarse.width must be int"),
        (lambda c: c["coarse"].update(colour=1), "coarse.colour is not a known field"),
        (lambda c: c["coarse"].update(layout="spiral"), "coarse.layout must be one of"),
        (lambda c: c.pop("tokenizer"), "tokenizer is missing"),
        (lambda c: c["codec"].update(kind="mp3"), "codec.kind must be one of"),
        (lambda c: c["tokens"].update(coarse=13), "tokens.coarse is larger"),
        (lambda c: c["tokens"].update(quantizers=4), "a fine stage needs tokens.quantizers to exceed"),
        (lambda c: c.update(format_version=0), "format_version must be between"),
        (lambda c: c.update(format_version=99), "format_version 99; this program knows up to 2, get a newer one"),
        (lambda c: c.update(format_version=3, codec=1, more=1), "format_version 3; this program knows up to 2"),
        (lambda c: c["sampling"].update(top_p=[0.5]), "sampling needs three values"),
        (lambda c: c["sampling"].update(guidance=-1.0), "sampling.guidance must be between 0 and 10"),
        (lambda c: c["semantic"].update(layout="frames"), "semantic.layout must be one of aligned, plain"),
        (
            lambda c: (
                c["tokens"].update(samples_per_frame=4000, frames_per_semantic=8)
                or c["semantic"].update(window_seconds=3.0)
            ),
            "semantic.window_seconds must hold two semantic tokens",
        ),
        (lambda c: c["coarse"].update(layers=96, width=16384, feedforward=65536), "larger than any"),
        (lambda c: c.update(tokens=[]), "tokens must be an object"),
        (lambda c: c.update(guide_weights=[0.5, 0.6]), "the sum of guide_weights must be 1"),
        (lambda c: c.update(guide_weights=[1.0]), "guide_weights must be a list of 2"),
        (lambda c: c.update(pause_tokens=[3, 16]), "pause_tokens must be below tokens.semantic_vocabulary"),
        (lambda c: c.update(pause_tokens=[-1]), "pause_tokens must be between 0 and 65535"),
        (lambda c: c.update(pause_tokens="1"), "pause_tokens must be a list of 0 to 65536"),
        (lambda c: c.update(max_pause=1.0), "max_pause needs pause_tokens"),
        (lambda c: c.update(max_pause=-1.0, pause_tokens=[1]), "max_pause must be between 0 and 3600"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_field(folder: Path, change, message: str) -> None:
    change_config(folder, change)
    with pytest.raises(ModelError, match=message) as error:
        load_all(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"name": NaN}'])
def test_a_config_that_is_not_one_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError):
        load_all(folder)


def test_sizes_that_differ_from_the_config_are_refused_before_anything_is_read(folder: Path) -> None:
    change_config(folder, lambda c: c["coarse"].update(width=64))
    with pytest.raises(ModelError, match=r"coarse.safetensors: tensor .* has shape"):
        load_all(folder)


@pytest.mark.parametrize("damage", ["missing", "unknown", "dtype", "truncated", "pickle", "header"])
def test_damaged_parts_are_refused(folder: Path, damage: str) -> None:
    file = folder / "fine.safetensors"
    tensors = load_file(file)
    if damage == "missing":
        del tensors["norm.weight"]
    elif damage == "unknown":
        tensors["more"] = torch.zeros(1)
    elif damage == "dtype":
        tensors["norm.weight"] = tensors["norm.weight"].int()
    save_file(tensors, file)
    data = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "pickle":
        torch.save(tensors, file)
    elif damage == "header":
        file.write_bytes((2**60).to_bytes(8, "little") + data[8:])
    with pytest.raises(ModelError, match=r"fine\.safetensors"):
        load_all(folder)


def test_one_wrong_byte_is_noticed_on_the_first_load_and_after_every_change(folder: Path) -> None:
    bundle.load(str(folder), device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "check_sums", lambda _: pytest.fail("checked already"))
        bundle.load(str(folder), device="cpu")
    file = folder / "fine.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    for _ in range(2):
        with pytest.raises(ModelError, match=r"fine\.safetensors: missing, or not what SHA256SUMS says"):
            bundle.load(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a list"),
        ("0" * 64 + "  ../../secret\n", "not a list"),
        ("0" * 64 + "  config.json\n", "codec.safetensors, .*config.json: missing, or not"),
        ("\0", "not a list"),
    ],
)
def test_sums_that_say_too_little_or_point_elsewhere_are_refused(folder: Path, text: str, says: str) -> None:
    (folder / "SHA256SUMS").write_text(text)
    with pytest.raises(ModelError, match=says):
        bundle.load(str(folder), device="cpu")


def test_the_parts_of_another_bundle_are_refused(folder: Path, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", seed=1)
    shutil.copy(other / "codec.safetensors", folder / "codec.safetensors")
    with pytest.raises(ModelError, match=r"is not the codec that config\.json names"):
        load_all(folder)


def test_assembling_a_mixture_is_refused_and_changes_nothing(folder: Path, tmp_path: Path) -> None:
    parts, others = tmp_path / "parts", tmp_path / "others"
    write_parts(parts, preset("tiny"))
    write_parts(others, preset("tiny"), seed=1)
    shutil.copy(others / "tokenizer.safetensors", parts / "tokenizer.safetensors")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(ModelError, match="tokens of another tokenizer"):
        assemble(parts, "tiny", folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_retrained_decoder_keeps_every_token_valid(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    write_parts(parts, preset("tiny"))
    file = parts / "codec.safetensors"
    tensors, about = load_file(file), bundle.read_about(file)
    tensors["decoder.output.bias"] += 1
    save_file(tensors, file, {"about": json.dumps(about)})
    assemble(parts, "tiny", tmp_path / "bundle")
    load_all(tmp_path / "bundle")


def test_unknown_names_and_devices() -> None:
    with pytest.raises(ModelError, match="no such bundle"):
        bundle.load("../nowhere")
    with pytest.raises(ModelError, match="no such bundle"):
        bundle.load("nobody")
    for device in ("cuda:99", "tpu", "cuda:x"):
        with pytest.raises(UsageError):
            bundle.pick_device(device)
    with pytest.raises(UsageError):
        bundle.pick_dtype("float8", torch.device("cpu"))


def test_embedded_bundles_match_their_checksums() -> None:
    import hashlib

    for name in embedded():
        folder = find(name)
        for line in (folder / "SHA256SUMS").read_text().splitlines():
            digest, file = line.split("  ")
            assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 64_000_000
