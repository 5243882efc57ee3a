"""What is decided by the processor, as each class of them would have it."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from audiolm_cli import processor
from audiolm_cli.bundles import bundle
from audiolm_cli.config import preset
from audiolm_cli.errors import UsageError
from audiolm_cli.language_models import engine, layers, transformer
from audiolm_cli.language_models.layers import Linear
from audiolm_cli.language_models.sampling import StageSampling
from audiolm_cli.processor import Processor
from tests.helpers import ROOT
from tests.helpers.bundles import modules
from tests.language_models.test_engine import coarse_item, coarse_model

CPU = torch.device("cpu")
CLASSES = [pytest.param(kind, id=kind.name.lower()) for kind in Processor]


@pytest.fixture
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Processor:
    """Has decisions taken as on a machine of that class. What they lead to is not run: see `one_dnn`."""
    monkeypatch.delenv("AUDIOLM_PROCESSOR", raising=False)
    monkeypatch.setattr(processor, "installed", lambda: request.param)
    return request.param


@pytest.fixture
def one_dnn(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Stand-ins for the products of packed weights, made of what every processor has; counts what was packed."""
    pack = Mock(side_effect=lambda weight: weight.detach().clone())

    def product(x: Tensor, weight: Tensor, function: str = "none", variant: str = "") -> Tensor:
        y = F.linear(x, weight)
        return F.gelu(y) if function == "gelu" else y

    for module in (layers, transformer):
        monkeypatch.setattr(module, "packed", pack)
        monkeypatch.setattr(module, "product", product)
    monkeypatch.setattr(layers, "product_plus", lambda x, weight, other: other + F.linear(x, weight))
    return pack


@pytest.mark.parametrize("machine", CLASSES, indirect=True)
def test_auto_is_what_is_fastest(machine: Processor) -> None:
    wanted = torch.bfloat16 if machine >= Processor.AVX512_BF16 else torch.float32
    assert bundle.pick_dtype("auto", CPU) == wanted
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        assert bundle.pick_dtype(name, CPU) == dtype


@pytest.mark.parametrize("layout", ["aligned", "frames"])
@pytest.mark.parametrize("machine", CLASSES, indirect=True)
def test_bfloat16_is_packed_only_where_it_can_be(machine: Processor, one_dnn: Mock, layout: str) -> None:
    """And gives the tokens of the weights as they are."""
    model, items = coarse_model(layout, torch.bfloat16), [coarse_item(n, 2 * n // 3, n, layout) for n in (9, 30)]  # type: ignore[arg-type]
    plain = engine.generate(model, items, StageSampling(1.0, 0, 0.95), batch_size=4)
    model.pack()
    assert model.packed == bool(one_dnn.call_count) == (machine >= Processor.AVX512)
    for item, expected in zip(items, plain, strict=True):
        assert torch.equal(engine.generate(model, [item], StageSampling(1.0, 0, 0.95), batch_size=4)[0], expected)


@pytest.mark.parametrize("machine", CLASSES, indirect=True)
def test_packed_rows_agree_from_a_width_on_and_with_amx_however_wide(machine: Processor) -> None:
    amx = machine == Processor.AMX
    for widths, agree in (((256, 1024), True), ((1024, 4096), amx), ((64, 256), False)):
        assert processor.row_block([(n, 256) for n in widths], torch.bfloat16, True, 16) == (1 if agree else None)


def test_a_lesser_processor_can_be_named_and_a_greater_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "installed", lambda: Processor.AVX512_BF16)
    for name, kind in (("avx2", Processor.AVX2), ("avx512", Processor.AVX512), ("AVX512_BF16", Processor.AVX512_BF16)):
        monkeypatch.setenv("AUDIOLM_PROCESSOR", name)
        assert processor.processor() == kind
    for name in ("amx", "", "sse"):
        monkeypatch.setenv("AUDIOLM_PROCESSOR", name)
        with pytest.raises(UsageError, match="AUDIOLM_PROCESSOR"):
            processor.processor()


def test_a_processor_that_is_not_there_is_one_line(tmp_path, audiolm, tiny_bundle, prompt, monkeypatch) -> None:
    monkeypatch.setattr(processor, "installed", lambda: Processor.AVX2)
    monkeypatch.setenv("AUDIOLM_PROCESSOR", "amx")
    code, out, err = audiolm("continue", prompt, "-o", "a.wav", "-m", tiny_bundle, "--device", "cpu", "-q")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("audiolm: error: AUDIOLM_PROCESSOR")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch is without oneDNN")
def test_the_private_operators_take_what_they_are_given() -> None:
    """In float32, which every processor multiplies: a torch that changes them is noticed wherever tests run."""
    x, other, linear = torch.randn(3, 1, 32), torch.randn(3, 1, 16), Linear(32, 16)
    with torch.inference_mode():
        plain = [linear(x), linear.gelu(x), linear.plus(x, other)]
        linear.pack()
        for got, wanted in zip([linear(x), linear.gelu(x), linear.plus(x, other)], plain, strict=True):
            assert torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_padded_to_a_block_do_not_depend_on_each_other(dtype: torch.dtype, threads: int) -> None:
    model = modules(preset("speech"))["coarse"].to(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        layers = {(m.in_features, m.out_features): m for m in model.modules() if isinstance(m, Linear)}
        block = processor.row_block(layers, dtype, False, 24)
        assert block, "the program pads to --batch-size instead"
        for layer, rows in itertools.product(layers.values(), (block, 2 * block, 5 * block, 12 * block)):
            x = torch.randn(16 * block, 1, layer.in_features, dtype=dtype)
            with torch.inference_mode():
                together = layer(x)
                for first in (0, 1, 3 * block):
                    assert torch.equal(layer(x[first : first + rows]), together[first : first + rows])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_tokens_depend_neither_on_the_batch_nor_on_its_size(threads: int) -> None:
    """Sizes that two threads split unevenly too."""
    model, items = coarse_model("frames"), [coarse_item(n, 2 * n // 3, n, "frames") for n in (5, 17, 9, 3, 6)]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = engine.generate(model, items, StageSampling(1.0, 0, 0.95), batch_size=5)
        for size in (1, 3, 6):
            again = engine.generate(model, items, StageSampling(1.0, 0, 0.95), batch_size=size)
            assert all(torch.equal(a, b) for a, b in zip(again, together, strict=True))
    finally:
        torch.set_num_threads(before)


def test_one_output_is_not_padded_to_the_batch_size() -> None:
    model = modules(preset("speech"))["coarse"].bfloat16()
    for dtype in (torch.float32, torch.bfloat16):
        assert engine._rows(model.to(dtype), 1, 2, 1024, batch_size=8) < 8  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["avx2", "avx512", "avx512_bf16", "amx"])
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16"])
def test_the_program_runs_as_each_processor(kind, dtype, audiolm, tiny_bundle, prompt, monkeypatch) -> None:
    if Processor[kind.upper()] > processor.installed():
        pytest.skip(f"this processor has not what {kind} has")
    monkeypatch.setenv("AUDIOLM_PROCESSOR", kind)
    options = ("-m", tiny_bundle, "--device", "cpu", "--dtype", dtype, "--duration", 0.2, "--seed", 1, "-q")
    assert audiolm("continue", prompt, "-o", "a.wav", *options)[:2] == (0, "a.wav\n")


def test_what_only_looks_at_bundles_needs_no_torch() -> None:
    """So that it answers at once."""
    code = """
import sys
from audiolm_cli.command_line.cli import main
assert main(sys.argv[1:]) == 0
heavy = {"torch", "numpy", "safetensors", "huggingface_hub.hf_api"} & sys.modules.keys()
assert not heavy, heavy
"""
    for arguments in (["models", "list"], ["models", "show", "speech"], ["models", "--help"]):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, cwd=ROOT)


@pytest.mark.parametrize("command", ["continue", "generate", "resynth", "encode", "decode", "detect"])
def test_threads_have_an_upper_bound(command, audiolm) -> None:
    for count in (257, 100_000):  # some thousands end the process
        code, out, err = audiolm(command, "--threads", count)
        assert (code, out) == (2, "")
        assert "--threads" in err


def test_the_releases_of_torch_that_are_promised_are_those_that_were_tried() -> None:
    promised = re.search(r'"torch>=([\d.]+),<2\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    tried = re.search(r"set -- ([\d.]+) 2\.(\d+)\.\d+", (ROOT / ".ci" / "torch-versions").read_text())
    assert promised
    assert tried
    assert tried[1] == promised[1] + ".0"
    assert int(tried[2]) == int(promised[2]) - 1
    oldest, here = (tuple(map(int, v.split("+")[0].split(".")[:2])) for v in (promised[1], torch.__version__))
    assert oldest <= here < (2, int(promised[2]))
