"""Decoders with int8 weights in the native kernel, beside its arithmetic written out and beside torch."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audiolm_cli import models, native
from audiolm_cli.config import StageSampling
from audiolm_cli.errors import ModelError, UsageError
from audiolm_cli.language_models.tokens import Item
from audiolm_cli.mimi.continuing import item
from audiolm_cli.mimi.decoder import CodeDecoder
from audiolm_cli.mimi.int8 import quantize
from audiolm_cli.mimi.weights import load_decoder
from audiolm_cli.native import decode
from audiolm_cli.native.model import Weights
from audiolm_cli.public.config import read_config
from audiolm_cli.public.layout import CODEBOOK_SIZE, read_layout
from tests.helpers import int8_model
from tests.helpers.int8_model import Int8Decoder
from tests.helpers.kernels import generated
from tests.helpers.twins import write_llama_mimi, write_soda

CPU = torch.device("cpu")
GREEDY, LIVELY = StageSampling(0.0, 0, 1.0), StageSampling(1.0, 0, 0.9)
TWINS: dict[str, tuple[Any, dict[str, Any]]] = {
    "soda": (write_soda, {"quantizers": 2}),
    "llama-mimi": (write_llama_mimi, {"quantizers": 2}),
    "tied, narrower heads": (write_llama_mimi, {"quantizers": 2, "head_dim": 8, "tie_word_embeddings": True}),
}
pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=TWINS)
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    write, sizes = TWINS[request.param]
    path: Path = write(tmp_path_factory.mktemp("twin") / "twin", **sizes)
    return path


def decoder(twin: Path) -> CodeDecoder:
    config = read_config(twin)
    return load_decoder(twin, config, read_layout(twin, config), CPU, torch.float32)


def in_int8(twin: Path, library: ctypes.CDLL) -> Weights:
    model = decoder(twin)
    quantize(model, library)
    assert model.native is not None
    assert not any(len(parameter.shape) > 1 for parameter in model.blocks.parameters())
    return model.native


def continued(model: CodeDecoder, known: int, new: int, seed: int = 0) -> Item:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(CODEBOOK_SIZE, (model.quantizers, known), generator=generator)
    unknown = torch.full((model.quantizers, new), -1)
    return item(model, torch.cat([codes, unknown], 1), torch.rand(model.quantizers * new, generator=generator))


@pytest.mark.parametrize("sampling", [GREEDY, LIVELY, StageSampling(0.8, 30, 1.0)], ids=str)
def test_every_kernel_gives_the_bits_of_the_plain_arithmetic(twin: Path, library, sampling: StageSampling) -> None:
    model = decoder(twin)
    wanted = continued(model, 5, 3)
    made, state = Int8Decoder(model).generate(wanted, sampling)
    weights = in_int8(twin, library)
    session = decode.Session(weights, [wanted], sampling)
    session.prefill()
    assert np.array_equal(np.ctypeslib.as_array(library.audiolm_state(session.handle, 0), state.shape), state)
    session.close()
    (got,) = generated(weights, [wanted], sampling, 1)
    assert torch.equal(got, int8_model.tokens(wanted, made))


@torch.inference_mode()
def test_it_is_near_what_torch_makes(twin: Path, best) -> None:
    model = decoder(twin)
    wanted = continued(model, 20, 1)
    known, weights = wanted.sequence.known, in_int8(twin, best)
    expected = model(wanted.sequence.ids[None, :known], wanted.sequence.fields[None, :known])[0, -1].numpy()
    session = decode.Session(weights, [wanted], GREEDY)
    session.prefill()
    found = np.ctypeslib.as_array(best.audiolm_state(session.handle, 0), expected.shape)
    assert np.std(found - expected) < 0.1 * np.std(expected)
    session.close()


def test_codes_do_not_depend_on_the_batch(twin: Path, best) -> None:
    model, weights = decoder(twin), in_int8(twin, best)
    items = [continued(model, known, 4, known) for known in (0, 7, 3)]
    together = generated(weights, items, LIVELY, 3)
    for one, made in zip(items, together, strict=True):
        assert torch.equal(generated(weights, [one], LIVELY, 1)[0], made)


def test_sizes_that_the_kernel_does_not_have_are_refused(tmp_path: Path, best) -> None:
    narrow = write_llama_mimi(tmp_path / "narrow", head_dim=4, num_key_value_heads=4, quantizers=1)
    with pytest.raises(UsageError, match="heads in multiples of 8, not 32, 64 and 4"):
        quantize(decoder(narrow), best)


def test_weights_that_are_not_finite_are_refused(twin: Path, best) -> None:
    model = decoder(twin)
    model.blocks[1].down.weight[3, 4] = torch.nan  # type: ignore[index, union-attr, operator]
    with pytest.raises(ModelError, match="not finite"):
        quantize(model, best)


def test_int8_needs_a_cpu_and_the_kernel(
    twin: Path, twins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUDIOLM_MIMI", str(twins / "mimi"))
    for name in (str(twins / "soda"), "speech"):
        monkeypatch.setenv("AUDIOLM_KERNEL", "torch")
        with pytest.raises(UsageError, match="--dtype int8: needs the native kernel"):
            models.load(name, device="cpu", dtype="int8")
        monkeypatch.delenv("AUDIOLM_KERNEL")
        if native.kernel():
            assert models.load(name, device="cpu", dtype="int8").kernel == "native"
