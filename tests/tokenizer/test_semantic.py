"""The tokenizer: fixed windows, a stated look-ahead, bounded attention."""

from __future__ import annotations

import pytest
import torch

from audiolm_cli.audio.mel import mel_filters
from audiolm_cli.config import TokenizerConfig, preset
from audiolm_cli.tokenizer.conformer import BandedAttention, ConformerLayer
from audiolm_cli.tokenizer.semantic import WINDOW_TOKENS, SemanticTokenizer
from audiolm_cli.training.parts.teacher import whisper_banks
from tests.helpers.bundles import modules


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


@pytest.mark.parametrize("length", [1, 2, 6, 7, 30])
@torch.inference_mode()
def test_attention_sees_its_band_and_no_more(length: int) -> None:
    torch.manual_seed(0)
    attention, x = BandedAttention(32, 2, left=5, right=1), torch.randn(2, length, 32)
    attention.bias.normal_()
    q, k, v = attention.inputs(x).view(2, length, 3, 2, 16).unbind(2)
    expected = torch.zeros(2, length, 2, 16)
    for n in range(length):
        band = range(max(0, n - 5), min(length, n + 2))
        bias = torch.stack([attention.bias[:, m - n + 5] for m in band])
        scores = torch.stack([(q[:, n] * k[:, m]).sum(-1) / 4 for m in band], 1) + bias
        expected[:, n] = (scores.softmax(1)[..., None] * v[:, list(band)]).sum(1)
    assert torch.allclose(attention(x), attention.output(expected.flatten(2)), atol=1e-5)


class Batched(torch.nn.Module):
    """A module for `[B, S, D]` in the place of attention over `[S, B, D]`."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module

    def forward(self, query: torch.Tensor, **_: object) -> tuple[torch.Tensor, None]:
        return self.module(query.transpose(0, 1)).transpose(0, 1), None


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("width", "heads", "kernel"), [(32, 2, 5), (96, 3, 15)])
@torch.inference_mode()
def test_a_layer_is_torchaudios_but_for_attention_and_causality(batch, width, heads, kernel) -> None:
    torchaudio = pytest.importorskip("tests.helpers.reference_torchaudio", reason="needs torchaudio")
    torch.manual_seed(0)
    ours = ConformerLayer(TokenizerConfig(width=width, heads=heads, feedforward=2 * width, kernel=kernel)).eval()
    theirs = torchaudio.ConformerLayer(width, 2 * width, heads, kernel).eval()
    theirs.self_attn = ours.self_attn
    theirs.conv_module.sequential[2] = ours.conv_module.sequential[2]
    for value in ours.state_dict().values():
        if value.is_floating_point():
            value.add_(torch.rand(value.shape) / 4)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    theirs.self_attn = Batched(ours.self_attn)
    x = torch.randn(batch, 50, width)
    assert torch.equal(ours(x), theirs(x.transpose(0, 1), None).transpose(0, 1))


@pytest.mark.parametrize(("size", "bins"), [(64, 6), (256, 28), (512, 80), (1024, 112), (2048, 160)])
@pytest.mark.parametrize("rate", [16000, 24000, 22050])
def test_mel_filters_are_torchaudios(size: int, bins: int, rate: int) -> None:
    torchaudio = pytest.importorskip("tests.helpers.reference_torchaudio", reason="needs torchaudio")
    frequencies = size // 2 + 1
    expected = torchaudio.melscale_fbanks(frequencies, 0.0, rate / 2, bins, rate)
    assert torch.equal(mel_filters(frequencies, bins, rate), expected)


@pytest.mark.parametrize("bins", [80, 128])
def test_whispers_filters_are_torchaudios(bins: int) -> None:
    torchaudio = pytest.importorskip("tests.helpers.reference_torchaudio", reason="needs torchaudio")
    expected = torchaudio.melscale_fbanks(201, 0.0, 8000.0, bins, 16000, norm="slaney", mel_scale="slaney")
    assert torch.equal(whisper_banks(bins, torch.device("cpu")), expected)


def test_silence_is_tokenized(tokenizer: SemanticTokenizer) -> None:
    assert torch.isfinite(tokenizer.represent(torch.zeros(1, 6400))).all()
