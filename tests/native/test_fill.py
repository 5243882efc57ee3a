"""Stage 3 of the layout `parallel` in the native kernel. Golden tokens of it stand with those of test_native.py."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audiolm_cli import native
from audiolm_cli.bundles import bundle
from audiolm_cli.config import StageConfig, TokenSpec
from audiolm_cli.errors import ModelError
from audiolm_cli.language_models import engine, stages
from audiolm_cli.language_models.parallel import ParallelTransformer
from audiolm_cli.language_models.sampling import Noise, StageSampling
from audiolm_cli.language_models.tokens import Infill
from audiolm_cli.native import decode, fill
from audiolm_cli.native.model import fits, pointer, prepare
from tests.helpers.int8_model import Int8Model
from tests.language_models.test_engine import coarse_item, coarse_model
from tests.native.test_native import GREEDY, LIVELY, needs_kernel

SPEC = TokenSpec(codebook_size=34, semantic_vocabulary=32, coarse=2, quantizers=5)


def parallel_model(seed: int = 0, config: StageConfig | None = None, spec: TokenSpec = SPEC) -> ParallelTransformer:
    torch.manual_seed(seed)
    model = ParallelTransformer(config or StageConfig(2, 4, 2, 64, 96, "parallel", window_seconds=1.0), spec)
    for parameter in model.parameters():
        parameter.data.mul_(4 if parameter.ndim > 1 else 1).add_(0 if parameter.ndim > 1 else torch.randn(1) / 4)
    return model.eval().requires_grad_(False)


def some_codes(frames: int, seed: int = 0, spec: TokenSpec = SPEC) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(spec.codebook_size, (spec.quantizers, frames), generator=generator)


def same_bits(library: Any, model: ParallelTransformer, frames: int, known: int, sampling: StageSampling) -> None:
    spec = model.spec
    codes = some_codes(frames, 1, spec).numpy().astype(np.int32)
    codes[spec.coarse :, known:] = -1
    uniform = np.random.default_rng(2).random((spec.fine, frames - known), np.float32)
    filling = Infill(torch.from_numpy(codes.copy()), torch.from_numpy(uniform.T.reshape(-1)), frames - known)
    window, plain = fill.WindowFilling(prepare(model, library), spec.coarse, filling, sampling), Int8Model(model)
    for q, numbers in enumerate(uniform, spec.coarse):
        codes[q, known:] = plain.fill(codes, known, q, numbers, sampling)
        assert window.advance() == frames - known
        assert np.array_equal(window.codes, codes)
    assert window.advance() == 0


@pytest.mark.parametrize("sampling", [GREEDY, LIVELY, StageSampling(0.7, 5, 0.9)], ids=str)
def test_every_kernel_gives_the_bits_of_the_plain_arithmetic(library, sampling) -> None:
    same_bits(library, parallel_model(), 21, 6, sampling)


def test_a_window_of_more_rows_than_a_tile_holds(library) -> None:
    same_bits(library, parallel_model(), 150, 70, LIVELY)


@st.composite
def any_model_and_window(draw: st.DrawFn) -> tuple[ParallelTransformer, int, int, StageSampling]:
    kv_heads, group, head = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.sampled_from((8, 16, 24)))
    heads = kv_heads * group
    if heads * head % 16:
        head *= 2
    config = StageConfig(
        draw(st.integers(1, 2)), heads, kv_heads, heads * head, 16 * draw(st.integers(1, 5)), "parallel",
        draw(st.floats(10, 1e6)),
    )  # fmt: skip
    coarse = draw(st.integers(1, 3))
    spec = TokenSpec(codebook_size=draw(st.integers(2, 40)), coarse=coarse, quantizers=coarse + draw(st.integers(1, 3)))
    frames = draw(st.integers(1, 40))
    sampling = StageSampling(draw(st.sampled_from((0.0, 0.5, 2.0))), draw(st.integers(0, 50)), draw(st.floats(0, 1)))
    return parallel_model(draw(st.integers(0, 99)), config, spec), frames, draw(st.integers(0, frames - 1)), sampling


@settings(max_examples=25)
@given(any_model_and_window())
def test_any_size_gives_the_bits_of_the_plain_arithmetic(best, case) -> None:
    model, frames, known, sampling = case
    assert fits(model)
    same_bits(best, model, frames, known, sampling)


def test_codes_are_nearly_always_those_of_the_reference(best) -> None:
    """What int8 changes is as little as in the other stages: of likeliest codes one in thirty, of all that follow."""
    model, coarse, known = parallel_model(), some_codes(200, 3)[: SPEC.coarse], some_codes(20, 4)
    (exact,) = stages.complete(model, [coarse], [known], stages.StageContext([Noise(1, 0, 0)], GREEDY, 1))
    model.native = prepare(model, best)
    (made,) = stages.complete(model, [coarse], [known], stages.StageContext([Noise(1, 0, 0)], GREEDY, 1))
    assert torch.equal(made[: SPEC.coarse], coarse)
    assert torch.equal(made[:, :20], torch.cat([coarse[:, :20], known[SPEC.coarse :]]))
    same = (made == exact)[SPEC.coarse :, 20:].float().mean()
    assert 0.8 < same < 1


def test_codes_depend_neither_on_threads_nor_on_what_else_is_made(best, monkeypatch) -> None:
    model = parallel_model()
    model.native = prepare(model, best)
    lengths = (130, 40, 71, 260, 5)
    coarse = [some_codes(n, n)[: SPEC.coarse] for n in lengths]
    known = [some_codes(n // 3, n) for n in lengths]
    noise, progress = [Noise(1, n, 0) for n in range(len(lengths))], list[int]()
    alone = [
        stages.complete(model, [c], [k], stages.StageContext([n], LIVELY, 1))[0]
        for c, k, n in zip(coarse, known, noise, strict=True)
    ]
    for threads in (1, 2, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        together = stages.complete(model, coarse, known, stages.StageContext(noise, LIVELY, 8, progress.append))
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert sum(progress) == 3 * sum(n - n // 3 for n in lengths) * SPEC.fine
    assert len({tuple(codes[SPEC.coarse :, -5:].flatten().tolist()) for codes in alone}) == len(lengths)


def test_sizes_and_codes_that_cannot_be_are_refused(best) -> None:
    weights = prepare(parallel_model(), best)

    def result(quantizer: int = 3, frames: int = 4, known: int = 1, code: int = 0, **changed: Any) -> int:
        codes, uniform = np.full((5, 4), code, np.int32), np.full(3, 0.5, np.float32)
        window, how = native.Window(frames, known, pointer(codes), pointer(uniform)), native.Sampling(1.0, 0.9, 0, 34)
        model = native.Model.from_buffer_copy(weights.model)
        for name, value in changed.items():
            setattr(how if hasattr(how, name) else model, name, value)
        return cast("int", best.audiolm_fill(model, window, how, quantizer))

    assert result() == 0
    for wrong in (
        {"quantizer": 5}, {"quantizer": -1}, {"frames": 0}, {"frames": 1 << 30}, {"known": 4}, {"known": -1},
        {"code": 34}, {"code": -2}, {"size": 33}, {"size": 0}, {"guides": 1}, {"asked": None}, {"vocabulary": 35},
        {"quantizers": 6}, {"width": 24}, {"heads": 3},
    ):  # fmt: skip
        assert result(**cast("Any", wrong)) == -2, wrong
    short = Infill(some_codes(9)[:4].index_fill(0, torch.tensor([2, 3]), -1), torch.zeros(9 * 2), 9)
    with pytest.raises(ValueError, match="every quantizer"):
        fill.fill(weights, 2, [short], GREEDY)


def test_models_of_windows_make_no_steps(best) -> None:
    weights = prepare(coarse_model("frames"), best)
    weights.model.asked = weights.model.ids
    with pytest.raises(ModelError, match="refuses"):
        decode.Session(weights, [coarse_item(6, 4, 0, "frames")], GREEDY)


def test_values_that_overflow_are_said(best) -> None:
    model = parallel_model()
    for block in model.layers():
        block.down.weight.data.fill_(3e38)
    model.native = prepare(model, best)
    with pytest.raises(ModelError, match="not finite"):
        stages.complete(
            model, [some_codes(9)[: SPEC.coarse]], [some_codes(3)], stages.StageContext([Noise(1, 0, 0)], LIVELY, 1)
        )


@pytest.mark.parametrize("sampling", [GREEDY, LIVELY], ids=str)
def test_nothing_is_drawn_from_logits_that_are_not_finite(best, sampling) -> None:
    windows, frames = parallel_model(), coarse_model("frames")
    for model in (windows, frames):
        model.norm.weight.data.fill_(1e30)
        model.ids.weight.data.mul_(1e15)
        model.native = prepare(model, best)
    with pytest.raises(ModelError, match="not finite"):
        stages.complete(
            windows, [some_codes(9)[: SPEC.coarse]], [some_codes(3)], stages.StageContext([Noise(1, 0, 0)], sampling, 1)
        )
    with pytest.raises(ModelError, match="not finite"):
        engine.generate(frames, [coarse_item(6, 4, 0, "frames")], sampling, 1)


@needs_kernel
def test_a_loaded_bundle_fills_natively(tiny_bundle, monkeypatch) -> None:
    monkeypatch.delenv("AUDIOLM_KERNEL", raising=False)
    loaded = bundle.load(str(tiny_bundle), device="cpu")
    assert isinstance(loaded.fine, ParallelTransformer)
    assert loaded.fine.native is not None
    spec, calls = loaded.config.tokens, list[int]()

    def counted(weights: Any, coarse: int, fillings: list[Infill], *rest: Any) -> list[Tensor]:
        calls.append(len(fillings))
        return [filling.codes[coarse:, filling.known :] for filling in fillings]

    monkeypatch.setattr(fill, "fill", counted)
    stages.complete(
        loaded.fine,
        [some_codes(9, 0, spec)[: spec.coarse]],
        [some_codes(3, 0, spec)],
        stages.StageContext([Noise(1, 0, 0)], LIVELY, 1),
    )
    assert calls == [1]
    monkeypatch.setenv("AUDIOLM_KERNEL", "torch")
    other = bundle.load(str(tiny_bundle), device="cpu")
    assert other.fine is not None
    assert other.fine.native is None
