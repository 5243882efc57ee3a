"""Temperature, top-k and top-p as their definitions have them."""

from __future__ import annotations

import torch

from audiolm_cli.language_models.sampling import sample

LOGITS = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()


def drawn(temperature: float, top_k: int, top_p: float, count: int = 4000) -> torch.Tensor:
    """How often each token comes when the uniform numbers are spread evenly."""
    uniform = (torch.arange(count) + 0.5) / count
    tokens = sample(LOGITS.expand(count, -1), uniform, temperature, top_k, top_p)
    return torch.bincount(tokens, minlength=4) / count


def test_the_distribution_is_the_softmax() -> None:
    assert torch.allclose(drawn(1.0, 0, 1.0), LOGITS.exp()[0], atol=1e-3)


def test_temperature_sharpens() -> None:
    assert torch.allclose(drawn(0.5, 0, 1.0), (2 * LOGITS).softmax(-1)[0], atol=1e-3)


def test_temperature_zero_is_deterministic() -> None:
    assert torch.equal(drawn(0.0, 0, 1.0), torch.tensor([0.0, 1.0, 0.0, 0.0]))


def test_top_k_keeps_the_likeliest() -> None:
    assert torch.allclose(drawn(1.0, 2, 1.0), torch.tensor([0, 2 / 3, 0, 1 / 3]), atol=1e-3)


def test_top_p_keeps_the_token_that_reaches_the_share() -> None:
    assert torch.allclose(drawn(1.0, 0, 0.6), torch.tensor([0, 2 / 3, 0, 1 / 3]), atol=1e-3)
    assert torch.equal(drawn(1.0, 0, 0.01), torch.tensor([0.0, 1.0, 0.0, 0.0]))


def test_extreme_uniform_numbers_stay_inside() -> None:
    ends = torch.tensor([2.0**-24, 1 - 2.0**-24])
    tokens = sample(LOGITS.expand(2, -1), ends, 1.0, 0, 0.75)
    assert tokens.tolist() == [1, 3]
