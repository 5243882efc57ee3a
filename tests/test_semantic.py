"""The tokenizer: fixed windows, a stated look-ahead, bounded attention."""

from __future__ import annotations

import pytest
import torch
from bundles import modules

from audiolm_cli.config import preset
from audiolm_cli.semantic import WINDOW_TOKENS, SemanticTokenizer


@pytest.fixture(scope="module")
def tokenizer() -> SemanticTokenizer:
    return modules(preset("tiny"))["tokenizer"].eval()  # type: ignore[return-value]


def noise(tokens: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 640 * tokens, generator=generator) * torch.rand(1, 640 * tokens, generator=generator)


def test_25_tokens_a_second(tokenizer: SemanticTokenizer) -> None:
    tokens = tokenizer.tokenize(noise(50))
    assert tokens.shape == (1, 50)
    assert tokens.dtype == torch.int64
    assert tokenizer.tokenize(noise(50)[:, :-1]).shape == (1, 49)
    assert len(tokens.unique()) > 1


def test_tokens_of_the_beginning_equal_those_of_the_whole_but_for_the_look_ahead(tokenizer: SemanticTokenizer) -> None:
    audio, ahead = noise(2 * WINDOW_TOKENS + 30), tokenizer.config.lookahead
    whole = tokenizer.represent(audio)
    for length in (75, WINDOW_TOKENS + 20):
        part = tokenizer.represent(audio[:, : 640 * length])
        assert torch.equal(part[:, : length - ahead], whole[:, : length - ahead])
        assert not torch.equal(part[:, -1], whole[:, length - 1])


def test_the_look_ahead_is_no_larger_than_stated(tokenizer: SemanticTokenizer) -> None:
    audio, ahead = noise(60), tokenizer.config.lookahead
    later = audio.clone()
    later[:, 640 * 40 :] = 0
    changed = (tokenizer.represent(audio) != tokenizer.represent(later)).any(-1)[0].nonzero()
    assert int(changed[0]) == 40 - ahead


def test_silence_is_tokenized(tokenizer: SemanticTokenizer) -> None:
    assert torch.isfinite(tokenizer.represent(torch.zeros(1, 6400))).all()
