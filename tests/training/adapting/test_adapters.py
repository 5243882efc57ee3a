"""Low-rank adapters and how they are merged."""

from __future__ import annotations

import torch

from audiolm_cli.training.adapting import adapters
from tests.language_models.test_engine import coarse_model


def merged(share: float) -> dict[str, torch.Tensor]:
    """A model's tensors with a share of random adapters."""
    torch.manual_seed(0)
    model = coarse_model("frames")
    for parameter in adapters.adapt(model, rank=2).parameters():
        parameter.data.normal_()
    adapters.merge(model, share)
    return dict(model.state_dict())


def test_a_share_of_what_they_learnt_is_merged():
    before, half, whole = (merged(share) for share in (0.0, 0.5, 1.0))
    assert before.keys() == coarse_model("frames").state_dict().keys()
    for name, tensor in half.items():
        torch.testing.assert_close(tensor, (before[name] + whole[name]) / 2)
    assert not torch.equal(half["ids.weight"], before["ids.weight"])
    assert torch.equal(half["norm.weight"], before["norm.weight"])
