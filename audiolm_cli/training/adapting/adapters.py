"""Low-rank adapters (LoRA; Hu et al., 2021) on the matrices of a stage, which merging makes part of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from audiolm_cli.language_models.transformer import Stack

RANK = 16


class LowRank(nn.Module):
    """What is added to a matrix `[rows, columns]`: the product of two narrow ones, at first 0."""

    def __init__(self, rows: int, columns: int, rank: int):
        super().__init__()
        rank = min(rank, rows, columns)
        self.down = nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def adapt(model: Stack, rank: int = RANK) -> nn.ModuleDict:
    """Gives every matrix of linear layers and the ids' embeddings an adapter; the model itself is frozen. Returns the
    adapters, by the name of their module."""
    model.requires_grad_(False)
    found = nn.ModuleDict()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) or module is model.ids:
            rows, columns = module.weight.shape
            adapter = LowRank(rows, columns, rank).to(module.weight)
            parametrize.register_parametrization(module, "weight", adapter)
            found[name.replace(".", "/")] = adapter
    return found


def merge(model: Stack) -> None:
    """Makes adapters part of their matrices, and so an ordinary model again."""
    for module in model.modules():
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
