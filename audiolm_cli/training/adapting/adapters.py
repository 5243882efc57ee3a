"""Low-rank adapters (LoRA; Hu et al., 2021) on the matrices of a stage, merged into them after training."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from audiolm_cli.language_models.transformer import Stack

RANK = 16
# Of what adapters learnt. The mean of the weights before and after fine-tuning (Wortsman et al., 2021, arXiv
# 2109.01903) keeps the new voice, sounds better than either, and forgets less of the other voices.
SHARE = 0.5


class LowRank(nn.Module):
    """The product of two narrow matrices, initially 0, that is added to a matrix `[rows, columns]`."""

    def __init__(self, rows: int, columns: int, rank: int):
        super().__init__()
        rank = min(rank, rows, columns)
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def adapt(model: Stack, rank: int = RANK) -> nn.ModuleDict:
    """Freezes the model and adds an adapter to every linear layer and to the id embedding. Returns the adapters by the
    name of their module."""
    model.requires_grad_(False)
    found = nn.ModuleDict()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) or module is model.ids:
            rows, columns = module.weight.shape
            adapter = LowRank(rows, columns, rank).to(module.weight)
            parametrize.register_parametrization(module, "weight", adapter)
            found[name.replace(".", "/")] = adapter
    return found


def merge(model: Stack, share: float = SHARE) -> None:
    """Adds a share of the adapters to their matrices, which leaves an ordinary model."""
    for module in model.modules():
        if isinstance(module, LowRank):
            module.up.data.mul_(share)
    for module in model.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
