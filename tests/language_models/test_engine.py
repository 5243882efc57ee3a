"""The fast engine against a slow decoder without cache, alone and in ragged batches, and what its noise depends on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from audiolm_cli.config import Layout, TokenSpec, preset
from audiolm_cli.language_models import engine
from audiolm_cli.language_models.engine import Item
from audiolm_cli.language_models.frames import FrameTransformer
from audiolm_cli.language_models.kinds import KINDS
from audiolm_cli.language_models.sampling import StageSampling, sample, uniforms
from audiolm_cli.language_models.tokens import TokenSequence
from audiolm_cli.language_models.transformer import Decoder, KVCache
from tests.helpers.bundles import modules

TINY = preset("tiny")
SPEC = TINY.tokens


def norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[name + ".weight"] + w[name + ".bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def weights(model: Decoder) -> dict[str, Tensor]:
    return {name: value.double() for name, value in model.state_dict().items()}


def slow_hidden(model: Decoder, ids: Tensor, fields: Tensor) -> Tensor:
    """The Transformer written out plainly in float64, one item, no cache: hidden states `[L, width]`."""
    c, w = model.config, weights(model)
    if c.layout == "frames":
        x = slow_codes(model, w, ids)
        for slot, tokens in enumerate(fields[:, 2:].T):
            size = w["semantic.weight"].shape[1]
            x = x + w["semantic.weight"][tokens] @ w["context.weight"][:, slot * size : (slot + 1) * size].T
    else:
        x = w["ids.weight"][ids] + w["streams.weight"][fields[:, 0]]
    length, head = len(ids), c.width // c.heads
    speeds = c.rotary_base ** (-torch.arange(head // 2, dtype=torch.float64) / (head // 2))
    turn = torch.polar(torch.ones(length, head // 2, dtype=torch.float64), fields[:, 1, None] * speeds)

    def turned(x: Tensor) -> Tensor:
        y = torch.complex(x[..., : head // 2], x[..., head // 2 :]) * turn
        return torch.cat([y.real, y.imag], -1)

    hidden = torch.full((length, length), -math.inf, dtype=torch.float64).triu(1)
    for n in range(c.layers):
        p = f"blocks.{n}."
        qkv = (norm(x, w, p + "attention_norm") @ w[p + "qkv.weight"].T).view(length, -1, head).transpose(0, 1)
        heads = []
        for h in range(c.heads):
            group = h // (c.heads // c.kv_heads)
            q, k, v = turned(qkv[h]), turned(qkv[c.heads + group]), qkv[c.heads + c.kv_heads + group]
            heads.append((q @ k.T / math.sqrt(head) + hidden).softmax(-1) @ v)
        x = x + torch.cat(heads, -1) @ w[p + "output.weight"].T
        x = x + gelu(norm(x, w, p + "feedforward_norm") @ w[p + "up.weight"].T) @ w[p + "down.weight"].T
    return norm(x, w, "norm")


def slow_codes(model: Decoder, w: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The first quantizers' ids of frames, `[L, up to Q]` -> the sum of their embeddings `[L, width]`."""
    rows = SPEC.codebook_size + 2
    return sum((w["ids.weight"][q * rows + ids[:, q]] for q in range(ids.shape[1])), torch.zeros(len(ids), 1).double())


def slow_frame_logits(model: Decoder, hidden: Tensor, codes: Tensor) -> Tensor:
    """Hidden states `[L, width]` and the first q codes of each frame -> logits of the next code, `[L, K]`."""
    w, q = weights(model), codes.shape[1]
    if q:
        p = f"levels.{q - 1}."
        both = torch.cat([hidden, norm(slow_codes(model, w, codes), w, p + "codes_norm")], -1)
        hidden = norm(hidden + gelu(both @ w[p + "up.weight"].T) @ w[p + "down.weight"].T, w, p + "norm")
    return hidden @ w["ids.weight"][q * (SPEC.codebook_size + 2) :][: SPEC.codebook_size].T


@torch.inference_mode()
def slow_generate(model: Decoder, item: Item, temperature: float, top_p: float, heats: Sequence[float] = ()) -> Tensor:
    """All logits anew for every token; `heats`: each step's factor of the temperature."""
    ids, known = item.sequence.ids.clone(), item.sequence.known
    for n in range(known, len(ids)):
        hidden = slow_hidden(model, ids[:n], item.sequence.fields[:n])[-1:]
        hot = temperature * (heats[n - known] if heats else 1)
        if model.config.layout == "frames":
            for q, number in enumerate(item.uniform[n - known]):
                logits = slow_frame_logits(model, hidden, ids[n : n + 1, :q])
                ids[n, q] = sample(logits.float(), number[None], hot, 0, top_p)[0]
            continue
        low = item.low[n - known]
        logits = hidden @ model.ids.weight[low : low + item.size].double().T
        ids[n] = sample(logits.float(), item.uniform[n - known : n - known + 1], hot, 0, top_p)[0] + low
    return ids[known:]


def coarse_item(semantic: int, known: int, seed: int, layout: Layout = "plain", spec: TokenSpec = SPEC) -> Item:
    """Frames of codes to finish; in the layout `aligned` as many semantic tokens as these are codes."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(spec.semantic_vocabulary, (semantic,), generator=generator)
    codes = torch.randint(spec.codebook_size, (spec.coarse, 2 * semantic), generator=generator)
    codes[:, known:] = -1
    kind: Any = KINDS["semantic" if layout == "aligned" else "coarse", layout](TINY.coarse, spec)
    said = torch.where(codes < 0, codes, codes % spec.semantic_vocabulary).T.flatten()
    sequence = kind.sequence(said) if layout == "aligned" else kind.sequence(tokens, codes)
    places = np.arange(int((sequence.ids < 0).sum()))
    return kind.item(sequence, torch.from_numpy(uniforms(seed, 0, 0, 2, places, np.zeros_like(places))))


def coarse_model(layout: Layout, dtype: torch.dtype = torch.float32) -> Decoder:
    """Of stage 2; in the layout `aligned` of stage 1."""
    stage = "semantic" if layout == "aligned" else "coarse"
    changed: Any = {stage: dataclasses.replace(TINY.coarse, layout=layout)}
    return modules(dataclasses.replace(TINY, **changed))[stage].eval().to(dtype)  # type: ignore[return-value]


@pytest.fixture(scope="module", params=["aligned", "plain", "frames"])
def model(request: pytest.FixtureRequest) -> Decoder:
    return coarse_model(request.param)


def four_items(layout: Layout) -> list[Item]:
    sizes = ((6, 4), (12, 9), (4, 0), (20, 13))
    return [coarse_item(semantic, known, seed, layout) for seed, (semantic, known) in enumerate(sizes)]


def test_hidden_states_equal_the_slow_decoder(model: Decoder) -> None:
    item = coarse_item(20, 40, 4, model.config.layout)
    with torch.inference_mode():
        fast = model(item.sequence.ids[None], item.sequence.fields[None])[0]
    slow = slow_hidden(model, item.sequence.ids, item.sequence.fields)
    assert (fast - slow).abs().max() < 1e-4


def test_frame_logits_equal_the_slow_decoder() -> None:
    model, item = coarse_model("frames"), coarse_item(20, 40, 4, "frames")
    assert isinstance(model, FrameTransformer)
    hidden, codes = torch.randn(40, model.config.width), item.sequence.ids[1:]
    with torch.inference_mode():
        logits = model.code_logits(hidden, codes)
    for q, one in enumerate(logits):
        assert (one - slow_frame_logits(model, hidden.double(), codes[:, :q])).abs().max() < 1e-4


def test_step_logits_equal_the_slow_decoder(model: Decoder) -> None:
    item, prefix = coarse_item(10, 20, 5, model.config.layout), 10
    ids, fields = item.sequence.ids, item.sequence.fields
    slow = slow_hidden(model, ids, fields)
    with torch.inference_mode():
        cache, features = KVCache.allocate(model, 2, 192), model.features(fields[None])
        cosine, sine = model.rotation(fields[None, :, 1])
        before = cosine[:, :, :prefix], sine[:, :, :prefix]
        hidden = model.prefill(ids[None, :prefix], features[:, :prefix], before, cache, 1)[0]
        assert (hidden - slow[prefix - 1]).abs().max() < 1e-4
        for n in range(prefix, len(ids)):
            bias = torch.zeros(2, 1, 1, 128)
            bias[:, :, :, n + 1 :] = -math.inf
            both = [x.expand(2, *x.shape) for x in (ids[n], features[0, n])]
            rotation, every = (cosine[:, :, n : n + 1], sine[:, :, n : n + 1]), slice(None)
            where = (every, every, n) if n % 2 else (torch.arange(2), every, torch.tensor([n, n]))
            hidden = model.step(both[0], both[1], rotation, cache, where, 128, bias)[1]
            assert (hidden - slow[n]).abs().max() < 1e-4


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 0.9)])
def test_ragged_batch_gives_the_slow_decoders_tokens(model: Decoder, temperature: float, top_p: float) -> None:
    items = four_items(model.config.layout)
    fast = engine.generate(model, items, StageSampling(temperature, 0, top_p), batch_size=4)
    for item, got in zip(items, fast, strict=True):
        assert torch.equal(got, slow_generate(model, item, temperature, top_p))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["aligned", "plain", "frames"])
def test_tokens_do_not_depend_on_the_batch(dtype: torch.dtype, layout: Layout) -> None:
    model = coarse_model(layout, dtype)
    items = [coarse_item(n, 2 * n // 3, n, layout) for n in (5, 90, 17, 3)]
    together = engine.generate(model, items, StageSampling(1.0, 0, 0.95), batch_size=4)
    for item, got in zip(items, together, strict=True):
        assert torch.equal(engine.generate(model, [item], StageSampling(1.0, 0, 0.95), batch_size=4)[0], got)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["aligned", "frames"])
def test_steps_that_run_as_graphs_give_the_same_tokens(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the capture itself, which needs a GPU."""
    model, captured = coarse_model(layout), []
    items = [*four_items(layout), coarse_item(270, 440, 5, layout)]  # the last one crosses a multiple of GRAPH_STEP
    for n, known in ((0, 0), (2, 0), (4, 0)):
        less = coarse_item(len(items[n].uniform.view(-1)) // (2 * SPEC.coarse), known, 9, layout)
        items[n] = dataclasses.replace(items[n], guides=(less.sequence,))
    samplings = [StageSampling(1.0, 0, 0.95), StageSampling(0.8, 5, 1.0, guidance=1.0)]
    expected = [engine.generate(model, items, sampling, batch_size=5) for sampling in samplings]

    def capture(steps: Callable[[], None], device: torch.device) -> Callable[[], None]:
        captured.append(steps)
        return steps

    monkeypatch.setattr(engine, "use_graphs", lambda device: True)
    monkeypatch.setattr(engine, "_captured", capture)
    for sampling, wanted in zip(samplings, expected, strict=True):
        for first in (0, 2, 0):  # the second batch fills a part of the slots that the first one left behind
            got = engine.generate(model, items[first:], sampling, batch_size=5)
            assert all(torch.equal(a, b) for a, b in zip(got, wanted[first:], strict=True))
        workspace = model.__dict__["workspace"][1]
        assert len(workspace.graphs) == len([graph for graph in workspace.graphs.values() if graph]) > 1
    assert len(captured) == 2 * len(workspace.graphs)  # all of them once for each sampling


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("graphs", ["0", "1"])
@pytest.mark.parametrize("layout", ["aligned", "frames"])
def test_a_gpu_gives_the_cpus_tokens(layout: Layout, graphs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUDIOLM_CUDA_GRAPHS", graphs)
    model, items = coarse_model(layout), four_items(layout)
    expected = engine.generate(model, items, StageSampling(0.0, 0, 1.0), batch_size=4)
    for got, wanted in zip(
        engine.generate(model.cuda(), items, StageSampling(0.0, 0, 1.0), batch_size=4), expected, strict=True
    ):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("layout", ["aligned", "frames"])
def test_packed_weights_give_the_same_values(layout: Layout) -> None:
    exact, packed, item = coarse_model(layout), coarse_model(layout, torch.bfloat16), coarse_item(30, 60, 0, layout)
    packed.pack()
    ids, fields = item.sequence.ids[None], item.sequence.fields[None]
    with torch.inference_mode():
        hidden = packed(ids, fields)
        assert (hidden - exact(ids, fields)).abs().mean() < 0.03
        assert (packed.logits(hidden, 5, 20) - exact.logits(hidden.float(), 5, 20)).abs().mean() < 0.03


@pytest.mark.parametrize("shares", [(1.0,), (0.75, 0.25)])
def test_guidance_leads_away_from_what_the_model_makes_without_the_prompt(
    model: Decoder, shares: tuple[float, ...]
) -> None:
    layout, strength, greedy = model.config.layout, 1.5, StageSampling(0.0, 0, 1.0, guidance=1.5, guide_weights=shares)
    items = []
    for number, (semantic, known) in enumerate(((6, 4), (9, 10))):
        item = coarse_item(semantic, known, number, layout)
        less = [coarse_item(semantic - known // 2, 0, 7 + number + 2 * n, layout) for n in range(len(shares))]
        assert all(
            torch.equal(one.sequence.ids < 0, less[0].sequence.ids < 0) for one in less
        )  # as many, behind nothing
        items.append(dataclasses.replace(item, guides=tuple(one.sequence for one in less)))
    guided = engine.generate(model, items, greedy, batch_size=2)
    for item, got in zip(items, guided, strict=True):
        assert item.guides
        branches, steps = [item.sequence, *item.guides], len(item.uniform)
        ids = [branch.ids.clone() for branch in branches]
        for n in range(steps):
            places = [len(i) - steps + n for i in ids]
            hidden = [
                slow_hidden(model, i[:p], b.fields[:p])[-1:] for i, p, b in zip(ids, places, branches, strict=True)
            ]
            for q in range(SPEC.coarse if layout == "frames" else 1):
                if layout == "frames":
                    logits = [
                        slow_frame_logits(model, h, i[p : p + 1, :q])
                        for h, i, p in zip(hidden, ids, places, strict=True)
                    ]
                else:
                    rows = weights(model)["ids.weight"][item.low[n] : item.low[n] + item.size]
                    logits = [h @ rows.T for h in hidden]
                without = torch.einsum("n...,n->...", torch.stack(logits[1:]), torch.tensor(shares).to(logits[0]))
                token = (logits[0] + strength * (logits[0] - without)).argmax() + item.low[n]
                for i, p in zip(ids, places, strict=True):
                    i[(p, q) if layout == "frames" else p] = token
        assert torch.equal(got, ids[0][-steps:])
    plain = [dataclasses.replace(item, guides=()) for item in items]
    unguided = engine.generate(model, plain, greedy, batch_size=2)
    assert all(
        torch.equal(a, b)
        for a, b in zip(unguided, engine.generate(model, plain, StageSampling(0.0, 0, 1.0), 2), strict=True)
    )
    assert not torch.equal(unguided[1], guided[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_guided_tokens_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    model, items, sampling = coarse_model("frames", dtype), four_items("frames"), StageSampling(1.0, 0, 0.95, 2.0)
    items = [
        dataclasses.replace(item, guides=(dataclasses.replace(item.sequence, ids=item.sequence.ids.clone()),))
        for item in items[:3]
    ]
    items[1] = dataclasses.replace(items[1], guides=())  # counts as its own guide
    together = engine.generate(model, items, sampling, batch_size=4)
    for item, got in zip(items, together, strict=True):
        assert torch.equal(engine.generate(model, [item], sampling, batch_size=4)[0], got)


def test_samples_of_one_prompt_share_its_prefill(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = model.config.layout
    items = [coarse_item(20, 13, 3, layout), coarse_item(6, 4, 0, layout), coarse_item(20, 13, 3, layout)]
    items[2] = dataclasses.replace(items[2], uniform=1 - items[2].uniform)
    alone = [engine.generate(model, [item], StageSampling(1.0, 0, 0.95), batch_size=3)[0] for item in items]
    prefill = Mock(side_effect=model.prefill)
    monkeypatch.setattr(model, "prefill", prefill)
    for got, wanted in zip(
        engine.generate(model, items, StageSampling(1.0, 0, 0.95), batch_size=3), alone, strict=True
    ):
        assert torch.equal(got, wanted)
    assert prefill.call_count == 2
    assert not torch.equal(alone[0], alone[2])


def test_an_item_stops_at_its_stop() -> None:
    model, item = coarse_model("aligned"), coarse_item(20, 0, 6, "aligned")
    free = engine.generate(model, [item], StageSampling(1.0, 0, 1.0), 1)[0]
    stop = int(free[37])
    stopped = dataclasses.replace(item, stop=stop)
    got = engine.generate(model, [stopped], StageSampling(1.0, 0, 1.0), 1)[0]
    first = int((free == stop).nonzero()[0])
    assert torch.equal(got[: first + 1], free[: first + 1])
    assert not got[first + 17 :].any()  # looked for every 16 steps


def test_progress_counts_every_token(model: Decoder) -> None:
    counts: list[int] = []
    items = four_items(model.config.layout)
    engine.generate(model, items, StageSampling(1.0, 0, 1.0), 3, counts.append)
    assert sum(counts) == sum(item.uniform.numel() for item in items)


def test_an_items_uniform_numbers_depend_on_nothing_but_their_key() -> None:
    frames, quantizers = np.arange(50), np.arange(50) % 4
    whole = uniforms(7, 1, 2, 3, frames, quantizers)
    assert np.array_equal(uniforms(7, 1, 2, 3, frames[20:], quantizers[20:]), whole[20:])
    for other in ((8, 1, 2, 3), (7, 2, 2, 3), (7, 1, 3, 3), (7, 1, 2, 2)):
        assert not np.intersect1d(uniforms(*other, frames, quantizers), whole).size
    many = uniforms(0, 0, 0, 1, np.arange(100_000), np.zeros(100_000, int))
    assert 0 < many.min() < many.max() < 1
    assert many.mean() == pytest.approx(0.5, abs=0.005)
    assert many.var() == pytest.approx(1 / 12, abs=0.001)


def test_sequence_known_counts_the_prefix() -> None:
    assert TokenSequence(torch.tensor([1, 2, -1, -1]), torch.zeros(4, 2)).known == 2
