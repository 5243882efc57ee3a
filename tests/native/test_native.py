"""The native kernel: the bits of its arithmetic written out in numpy, on every processor, for every batch and number of
threads. `python -m tests.native.test_native` rewrites the golden tokens. AUDIOLM_SANITIZE=1: all under sanitizers.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from audiolm_cli import native
from audiolm_cli.config import StageConfig, TokenSpec, preset
from audiolm_cli.language_models import stages
from audiolm_cli.language_models.engine import Item
from audiolm_cli.language_models.frames import FrameTransformer
from audiolm_cli.language_models.kinds import KINDS
from audiolm_cli.language_models.parallel import ParallelTransformer
from audiolm_cli.language_models.sampling import Noise, StageSampling, sample, uniforms
from audiolm_cli.language_models.semantic import SemanticTransformer
from audiolm_cli.language_models.transformer import Decoder
from audiolm_cli.native import decode
from audiolm_cli.native.model import Weights, fits, packed, pointer, prepare, quantized
from tests.helpers import ROOT, int8_model
from tests.helpers.bundles import modules
from tests.helpers.int8_model import Int8Model
from tests.helpers.kernels import generated
from tests.language_models.test_engine import SPEC, coarse_item, coarse_model, four_items, slow_hidden
from tests.language_models.test_pauses import some_heats, stepped
from tests.program.test_golden import settled

GOLDEN = ROOT / "tests" / "golden" / "native.safetensors"
GREEDY, LIVELY = StageSampling(0.0, 0, 1.0), StageSampling(1.0, 0, 0.9)
needs_kernel = pytest.mark.skipif(not native.library("plain"), reason="the native kernel is not compiled here")


def state_of(weights: Weights, item: Item) -> np.ndarray:
    """The hidden state `[width]` behind the known part of an item."""
    session = decode.Session(weights, [item], GREEDY)
    session.prefill()
    found = np.ctypeslib.as_array(weights.library.audiolm_state(session.handle, 0), (weights.model.width,)).copy()
    session.close()
    return found


def same_bits(library: ctypes.CDLL, model: Decoder, item: Item, sampling: StageSampling, wanted: Any = None) -> None:
    """Holds a kernel against the plain arithmetic; `wanted` where that has been computed already."""
    weights = prepare(model, library)
    made, state = wanted or Int8Model(model).generate(item, sampling)
    assert np.array_equal(state_of(weights, item), state)
    (got,) = generated(weights, [item], sampling, 1)
    assert torch.equal(got, int8_model.tokens(item, made))


def guided_item(guides: int, layout: Any = "frames") -> Item:
    item = coarse_item(9, 10, 1, layout)
    less = [coarse_item(4, 0, 7 + 2 * n, layout).sequence for n in range(guides)]
    return dataclasses.replace(item, guides=tuple(less))


@functools.cache
def plain_arithmetic(layout: Any, guides: int, sampling: StageSampling) -> Any:
    """Is the same for all kernels, and takes longer than any."""
    item = guided_item(guides, layout) if guides else coarse_item(6, 4, 0, layout)
    return Int8Model(coarse_model(layout)).generate(item, sampling)


@pytest.mark.parametrize("layout", ["aligned", "plain", "frames"])
@pytest.mark.parametrize("sampling", [GREEDY, LIVELY, StageSampling(0.7, 5, 1.0), StageSampling(1.3, 9, 0.8)], ids=str)
def test_every_kernel_gives_the_bits_of_the_plain_arithmetic(library, layout, sampling) -> None:
    wanted = plain_arithmetic(layout, 0, sampling)
    same_bits(library, coarse_model(layout), coarse_item(6, 4, 0, layout), sampling, wanted)


@pytest.mark.parametrize("shares", [(1.0,), (0.8, 0.2)])
@pytest.mark.parametrize("layout", ["aligned", "frames"])
def test_guidance_gives_the_bits_of_the_plain_arithmetic(library, layout, shares) -> None:
    sampling = StageSampling(0.8, 0, 0.95, guidance=1.5, guide_weights=shares)
    item = guided_item(len(shares), layout)
    same_bits(library, coarse_model(layout), item, sampling, plain_arithmetic(layout, len(shares), sampling))
    weights = prepare(coarse_model(layout), library)
    unguided = generated(weights, [dataclasses.replace(item, guides=())], sampling, 1)
    assert not torch.equal(unguided[0], generated(weights, [item], sampling, 1)[0])


@pytest.mark.parametrize("layout", ["aligned", "frames"])
def test_steps_at_other_temperatures_give_the_bits_of_the_plain_arithmetic(library, layout) -> None:
    model = coarse_model(layout)
    items = [coarse_item(6, 4, 0, layout), coarse_item(5, 3, 1, layout)]
    wanted = [some_heats(len(item.uniform), n) for n, item in enumerate(items)]
    made = stepped(decode.Sessions(prepare(model, library), items, LIVELY), wanted)
    for item, heats, got in zip(items, wanted, made, strict=True):
        ids, _ = Int8Model(model).generate(item, LIVELY, heats)
        assert torch.equal(got, int8_model.tokens(item, ids))


@pytest.mark.parametrize("sampling", [
    StageSampling(temperature, top_k, top_p) for temperature in (0.05, 0.6, 20.0)
    for top_k, top_p in ((0, 1.0), (0, 0.9), (0, 0.3), (0, 0.0), (1, 1.0), (60, 0.9), (299, 1.0), (300, 0.5))
], ids=str)  # fmt: skip
def test_draws_from_many_ids(best, sampling) -> None:
    """More than are passed over together, of likely and unlikely ones and of some that are equal."""
    spec = TokenSpec(codebook_size=300, semantic_vocabulary=20, coarse=3, quantizers=4)
    torch.manual_seed(0)
    model = FrameTransformer(StageConfig(1, 2, 1, 32, 32, "frames"), spec)
    weight = model.ids.weight.data.normal_()
    weight[100:150] = weight[50:100]
    same_bits(best, model.eval(), coarse_item(30, 2, 5, "frames", spec), sampling)


@st.composite
def any_model_and_item(draw: st.DrawFn) -> tuple[Decoder, Item, StageSampling]:
    kv_heads, group, head = draw(st.integers(1, 3)), draw(st.integers(1, 6)), draw(st.sampled_from((8, 16, 24)))
    heads = kv_heads * group
    if heads * head % 16:
        head *= 2
    layout: Any = draw(st.sampled_from(("aligned", "plain", "frames")))
    config = StageConfig(
        draw(st.integers(1, 2)), heads, kv_heads, heads * head, 16 * draw(st.integers(1, 5)), layout,
        draw(st.floats(10, 1e6)),
    )  # fmt: skip
    spec = TokenSpec(
        codebook_size=draw(st.integers(2, 40)), semantic_vocabulary=draw(st.integers(2, 40)),
        coarse=draw(st.integers(1, 3)), quantizers=3,
    )  # fmt: skip
    torch.manual_seed(draw(st.integers(0, 99)))
    model = KINDS["semantic" if layout == "aligned" else "coarse", layout](config, spec)
    assert isinstance(model, Decoder)
    for parameter in model.parameters():
        parameter.data.mul_(4 if parameter.ndim > 1 else 1).add_(0 if parameter.ndim > 1 else torch.randn(1) / 4)
    semantic = draw(st.integers(1, 10))
    known = draw(st.integers(max(0, 2 * semantic - 4), 2 * semantic - 1))
    item = coarse_item(semantic, known, draw(st.integers(0, 99)), layout, spec)
    least = draw(st.floats(0, 1))
    sampling = StageSampling(draw(st.sampled_from((0.0, 0.5, 1.0, 2.0))), draw(st.integers(0, 50)), least)
    return model.eval(), item, sampling


@settings(max_examples=25)
@given(any_model_and_item())
def test_any_size_gives_the_bits_of_the_plain_arithmetic(best, case) -> None:
    model, item, sampling = case
    assert fits(model)
    same_bits(best, model, item, sampling)


@settings(max_examples=100)
@given(st.integers(1, 200), st.integers(1, 300), st.integers(0, 140), st.integers(0, 99))
def test_products_of_any_size(best, outputs: int, inputs: int, rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((outputs, inputs)).astype(np.float32) * np.float32(
        random.choice([0, 1e-20, 1, 1e20])
    )
    x = random.standard_normal((rows, inputs)).astype(np.float32) * np.float32(random.choice([0, 1e-35, 1, 1e10]))
    values, scales = quantized(weight)
    assert np.abs(values).max() <= 127
    ready, up = packed(values), -outputs % 16
    sums, scales = np.pad(values.sum(1, dtype=np.int32), (0, up)), np.pad(scales, (0, up))
    matrix = native.Matrix(outputs + up, ready.shape[1] * 4, *map(pointer, (ready, scales, sums)))
    padded = np.ascontiguousarray(np.pad(x, ((0, 0), (0, matrix.inputs - inputs))))
    y = np.full((rows, matrix.outputs), np.nan, np.float32)
    assert best.audiolm_product(matrix, rows, pointer(padded), pointer(y)) == 0
    assert np.array_equal(y[:, :outputs], int8_model.product(x, weight))
    assert not y[:, outputs:].any()


@pytest.mark.parametrize("layout", ["aligned", "frames"])
def test_int8_changes_hidden_states_no_more_than_rounding_explains(best, layout) -> None:
    model, item = coarse_model(layout), coarse_item(20, 26, 4, layout)
    known = item.sequence.known
    exact = slow_hidden(model, item.sequence.ids[:known], item.sequence.fields[:known])[-1].numpy()
    error = state_of(prepare(model, best), item) - exact
    assert 1e-4 < np.sqrt(np.square(error).mean() / np.square(exact).mean()) < 0.05


def many_items(layout: Any) -> list[Item]:
    items = [*four_items(layout), *(coarse_item(n, 2 * n // 3, n, layout) for n in (5, 45, 17, 3))]
    return items


@pytest.mark.parametrize("layout", ["aligned", "frames"])
def test_tokens_do_not_depend_on_batch_and_threads(best, layout, monkeypatch) -> None:
    weights, items = prepare(coarse_model(layout), best), many_items(layout)
    alone = [generated(weights, [item], LIVELY, 1)[0] for item in items]
    for threads, size in ((1, 8), (2, 8), (3, 5), (16, 8)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        together = generated(weights, items, LIVELY, size)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_more_rows_than_a_tile_holds(best) -> None:
    weights, item = prepare(coarse_model("frames"), best), guided_item(2)
    sampling = StageSampling(1.0, 0, 0.9, guidance=2.0, guide_weights=(0.5, 0.5))
    items = [dataclasses.replace(item, uniform=item.uniform * (1 - n / 50), guides=item.guides if n % 3 else ())
             for n in range(40)]  # fmt: skip
    alone = [generated(weights, [item], sampling, 1)[0] for item in items]
    assert all(torch.equal(a, b) for a, b in zip(alone, generated(weights, items, sampling, 40), strict=True))
    assert len({tuple(ids.flatten().tolist()) for ids in alone}) > 10


def test_what_other_code_did_to_float_arithmetic_does_not_matter(best) -> None:
    """Some libraries have small numbers counted as zero."""
    weights, items = prepare(coarse_model("frames"), best), four_items("frames")
    expected = generated(weights, items, LIVELY, 4)
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not")
    try:
        tiny = torch.tensor([1e-40])
        assert float(tiny * 1) == 0
        assert all(torch.equal(a, b) for a, b in zip(generated(weights, items, LIVELY, 4), expected, strict=True))
        assert float(tiny * 1) == 0  # and is as it was
    finally:
        torch.set_flush_denormal(False)


def test_an_item_stops_at_its_stop(best) -> None:
    weights, item = prepare(coarse_model("aligned"), best), coarse_item(20, 0, 6, "aligned")
    (free,) = generated(weights, [item], LIVELY, 1)
    stop = int(free[37])
    others = [dataclasses.replace(item, stop=stop), item]
    cut, whole = generated(weights, others, LIVELY, 2)
    assert torch.equal(whole, free)
    behind = int((free == stop).nonzero()[0]) + 1
    assert torch.equal(cut, free[:behind])


def test_an_item_with_nothing_to_make(best) -> None:
    weights, item = prepare(coarse_model("frames"), best), coarse_item(6, 4, 0, "frames")
    whole = dataclasses.replace(item.sequence, ids=item.sequence.ids.clamp(min=0))
    done = Item(whole, [], item.size, item.uniform[:0])
    first, second = generated(weights, [done, item], LIVELY, 1)
    assert first.shape == (0, SPEC.coarse)
    assert torch.equal(second, generated(weights, [item], LIVELY, 1)[0])


def test_progress_counts_every_token(best) -> None:
    counts: list[int] = []
    items = four_items("frames")
    generated(prepare(coarse_model("frames"), best), items, LIVELY, 3, counts.append)
    assert sum(counts) == sum(item.uniform.numel() for item in items)
    assert len(counts) > 2


def samples_of_one_prompt(layout: Any) -> list[Item]:
    """All alike at the beginning of what is known, the second and third to its end, one of another prompt between."""
    first = coarse_item(40, 60, 3, layout)
    ids, fields, known = first.sequence.ids, first.sequence.fields, first.sequence.known
    found = [first, coarse_item(6, 4, 0, layout), dataclasses.replace(first, uniform=1 - first.uniform)]
    for place in (1, known // 3, known - 2):
        codes, context = ids.clone(), fields.clone()
        codes[place] = (codes[place] + 1) % 3
        context[place + 1, 2:] = 0
        sequence = dataclasses.replace(first.sequence, ids=codes, fields=context)
        found.append(dataclasses.replace(first, sequence=sequence, uniform=first.uniform.roll(place)))
    return found


@pytest.mark.parametrize("layout", ["aligned", "frames"])
def test_samples_of_one_prompt_share_its_cache_and_are_as_if_alone(library, layout) -> None:
    weights, items = prepare(coarse_model(layout), library), samples_of_one_prompt(layout)
    session = decode.Session(weights, items, LIVELY)
    session.close()
    shared, likes = [branch.shared for branch in session.branches], [branch.like for branch in session.branches]
    known = items[0].sequence.known
    assert shared == [0, 0, (known - 1) // 8 * 8, 0, known // 3 // 8 * 8, (known - 2) // 8 * 8]
    assert likes == [-1, -1, 0, -1, 0, 0]
    alone = [generated(weights, [item], LIVELY, 1)[0] for item in items]
    together = generated(weights, items, LIVELY, len(items))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert len({tuple(ids.flatten().tolist()) for ids in alone}) == len(items)


def test_draws_as_torch_does() -> None:
    """Where no number falls between two ids' ranges; ties are kept alike."""
    random = np.random.default_rng(0)
    for sampling in (LIVELY, StageSampling(0.6, 0, 1.0), StageSampling(1.0, 7, 0.9), StageSampling(0.0, 0, 1.0)):
        logits = 3 * random.standard_normal((200, 50)).astype(np.float32)
        logits[:, 10:20] = logits[:, :10]
        numbers = random.random(200, np.float32)
        how = sampling.temperature, sampling.top_k, sampling.top_p
        expected = sample(torch.from_numpy(logits), torch.from_numpy(numbers), *how)
        got = [int8_model.draw(row, number, sampling) for row, number in zip(logits, numbers, strict=True)]
        assert got == expected.tolist()


def golden(library: ctypes.CDLL) -> dict[str, Tensor]:
    """Tokens of fixed models, whose weights come from numpy's RandomState."""
    config, found = preset("tiny"), {}
    spec, noise = config.tokens, torch.from_numpy(uniforms(1, 0, 0, 2, np.arange(200), np.zeros(200, int)))
    parts = modules(config)
    semantic = settled(cast("SemanticTransformer", parts["semantic"]), 20)
    coarse = settled(cast("FrameTransformer", parts["coarse"]), 21)
    tokens = torch.arange(60) * 7 % spec.semantic_vocabulary
    known = tokens.clone()
    known[10:] = -1
    item = semantic.item(semantic.sequence(known), noise[:50])
    found["semantic"] = generated(prepare(semantic, library), [item], LIVELY, 1)[0]
    codes = torch.arange(240).view(4, 60) * 11 % spec.codebook_size
    codes[:, 30:] = -1
    less = coarse.sequence(tokens[15:30], codes[:, 30:])
    item = coarse.item(coarse.sequence(tokens[:30], codes), noise[:120], (less,))
    sampling = StageSampling(1.0, 0, 0.95, guidance=1.0)
    found["coarse"] = generated(prepare(coarse, library), [item], sampling, 1)[0]
    fine = cast("ParallelTransformer", settled(parts["fine"], 22))
    fine.native = prepare(fine, library)
    whole = torch.arange(spec.quantizers * 90).view(-1, 90) * 13 % spec.codebook_size
    (made,) = stages.complete(
        fine, [whole[: spec.coarse]], [whole[:, :20]], stages.StageContext([Noise(1, 0, 0)], LIVELY, 1)
    )
    found["fine"] = made[spec.coarse :, 20:].contiguous()
    return {name: ids.int() for name, ids in found.items()}


def test_tokens_are_what_they_were_on_every_processor(library) -> None:
    expected, now = load_file(GOLDEN), golden(library)
    assert expected.keys() == now.keys()
    assert all(torch.equal(now[name], ids) for name, ids in expected.items())
    assert all(len(ids.unique()) > 8 for ids in expected.values())


if __name__ == "__main__":
    plain = native.library("plain")
    assert plain is not None
    save_file(golden(plain), GOLDEN)
