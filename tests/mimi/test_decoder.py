"""Our decoder beside the classes that the checkpoints were written by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from audiolm_cli.config import StageSampling
from audiolm_cli.language_models import engine
from audiolm_cli.language_models.tokens import Item, TokenSequence
from audiolm_cli.mimi.codec import transformers
from audiolm_cli.mimi.decoder import CodeDecoder
from audiolm_cli.mimi.weights import load_decoder
from audiolm_cli.public.config import read_config
from audiolm_cli.public.layout import CODEBOOK_SIZE, Layout, read_layout
from tests.helpers.twins import write_llama_mimi, write_soda

CPU = torch.device("cpu")
TWINS: dict[str, tuple[Any, dict[str, Any]]] = {
    "soda": (write_soda, {}),
    "soda untied": (write_soda, {"tie_word_embeddings": False}),
    "llama-mimi": (write_llama_mimi, {}),
    "llama-mimi tied": (write_llama_mimi, {"tie_word_embeddings": True}),
    "narrow heads": (write_llama_mimi, {"head_dim": 4, "num_key_value_heads": 4}),
}
pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


class Pair:
    """A checkpoint in our decoder, and in the library's."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32):
        self.config = read_config(folder)
        self.layout: Layout = read_layout(folder, self.config)
        self.ours: CodeDecoder = load_decoder(folder, self.config, self.layout, CPU, dtype)
        self.theirs: Any = transformers().AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def ids(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes `[Q, F]` behind the header, as our decoder counts ids."""
        quantizers = self.layout.quantizers
        header = quantizers * CODEBOOK_SIZE + torch.arange(len(self.layout.header))
        return torch.cat([header, (codes + CODEBOOK_SIZE * torch.arange(quantizers)[:, None]).T.reshape(-1)])

    @torch.inference_mode()
    def expected(self, ids: torch.Tensor) -> torch.Tensor:
        """The library's logits of the code that is due behind each of our ids, from the last of the header on: `[frames
        * Q + 1, 2048]`."""
        known = torch.from_numpy(self.layout.codes).reshape(-1)
        known = torch.cat([known, torch.tensor(self.layout.header)])
        logits = self.theirs(known[ids][None]).logits[0, len(self.layout.header) - 1 :]
        due = [torch.from_numpy(self.layout.codes[n % self.layout.quantizers]) for n in range(len(logits))]
        return torch.stack([row[ids] for row, ids in zip(logits, due, strict=True)])


@pytest.fixture(scope="module", params=TWINS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    write, sizes = TWINS[request.param]
    return Pair(write(tmp_path_factory.mktemp("twin") / "twin", **sizes))


def random_codes(pair: Pair, frames: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CODEBOOK_SIZE, (pair.layout.quantizers, frames), generator=generator)


def sequence(ids: torch.Tensor) -> TokenSequence:
    places = torch.arange(len(ids))
    return TokenSequence(ids, torch.stack([torch.zeros_like(places), places], 1))


@torch.inference_mode()
def test_logits_of_a_whole_sequence_are_those_of_transformers(pair: Pair):
    ids = pair.ids(random_codes(pair, 5, 1))
    hidden = pair.ours(ids[None], sequence(ids).fields[None])[0, len(pair.layout.header) - 1 :]
    due = [n % pair.layout.quantizers * CODEBOOK_SIZE for n in range(len(hidden))]
    logits = torch.stack([pair.ours.logits(h, low, CODEBOOK_SIZE) for h, low in zip(hidden, due, strict=True)])
    expected = pair.expected(ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("lengths", [[4], [1, 6, 3, 0]], ids=["alone", "ragged"])
def test_logits_of_prefill_and_cached_steps_are_those_of_transformers(
    pair: Pair, lengths: list[int], monkeypatch: pytest.MonkeyPatch
):
    quantizers, new = pair.layout.quantizers, 3
    items, seen = [], []
    for n, length in enumerate(lengths):
        ids = torch.cat([pair.ids(random_codes(pair, length, n)), torch.full((new * quantizers,), -1)])
        low = [q * CODEBOOK_SIZE for q in range(quantizers)] * new
        items.append(Item(sequence(ids), low, CODEBOOK_SIZE, torch.rand(new * quantizers)))

    def draw(hidden: torch.Tensor, uniform: torch.Tensor, low: int, size: int, *how: Any):
        seen.append(pair.ours.logits(hidden, low, size).clone())
        return CodeDecoder.draw(pair.ours, hidden, uniform, low, size, *how)

    monkeypatch.setattr(pair.ours, "draw", draw)
    made = engine.generate(pair.ours, items, StageSampling(1.0, 0, 0.9), 4)
    for n, item in enumerate(items):
        whole = torch.cat([item.sequence.ids[: item.sequence.known], made[n]])
        expected = pair.expected(whole)[-new * quantizers - 1 : -1]
        torch.testing.assert_close(torch.stack([step[n] for step in seen]), expected, atol=1e-4, rtol=0)


def test_codes_come_in_frame_order_and_do_not_depend_on_the_batch(pair: Pair):
    quantizers, new = pair.layout.quantizers, 2
    low = [q * CODEBOOK_SIZE for q in range(quantizers)] * new
    items = []
    for n in range(3):
        ids = torch.cat([pair.ids(random_codes(pair, n, n)), torch.full((new * quantizers,), -1)])
        uniform = torch.rand(new * quantizers, generator=torch.Generator().manual_seed(n))
        items.append(Item(sequence(ids), low, CODEBOOK_SIZE, uniform))
    together = engine.generate(pair.ours, items, StageSampling(1.0, 0, 1.0), 4)
    for item, made in zip(items, together, strict=True):
        (alone,) = engine.generate(pair.ours, [item], StageSampling(1.0, 0, 1.0), 4)
        assert torch.equal(alone, made)
        assert torch.equal(made // CODEBOOK_SIZE, torch.arange(quantizers).repeat(new))


def test_steps_that_cuda_graphs_would_hold_make_the_same(pair: Pair, monkeypatch: pytest.MonkeyPatch):
    quantizers, new = pair.layout.quantizers, 4
    ids = torch.cat([pair.ids(random_codes(pair, 2, 0)), torch.full((new * quantizers,), -1)])
    uniform = torch.rand(new * quantizers, generator=torch.Generator().manual_seed(1))
    item = Item(sequence(ids), [q * CODEBOOK_SIZE for q in range(quantizers)] * new, CODEBOOK_SIZE, uniform)
    (plain,) = engine.generate(pair.ours, [item], StageSampling(1.0, 0, 1.0), 2)
    monkeypatch.setattr(engine, "use_graphs", lambda device: True)
    monkeypatch.setattr(engine, "_captured", lambda steps, device: steps)
    (held,) = engine.generate(pair.ours, [item], StageSampling(1.0, 0, 1.0), 2)
    pair.ours.__dict__.pop("workspace")
    assert torch.equal(plain, held)


def test_a_decoder_in_bfloat16_is_near(tmp_path: Path):
    pair = Pair(write_soda(tmp_path / "twin"), torch.bfloat16)
    ids = pair.ids(random_codes(pair, 4, 0))
    with torch.inference_mode():
        hidden = pair.ours(ids[None], sequence(ids).fields[None])[0, -1]
        logits, expected = pair.ours.logits(hidden, 0, CODEBOOK_SIZE).float(), pair.expected(ids)[-1]
    assert pair.ours.ids.weight.dtype == torch.bfloat16
    assert (logits - expected).std() < 0.1 * expected.std()
