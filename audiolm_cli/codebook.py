"""Nearest-neighbour search in the codec's codebooks and the tokenizer's centroids."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Index of the centroid `[K, D]` nearest to each point `[N, D]`; `int64 [N]`."""
    return torch.addmm(centroids.square().sum(1), points, centroids.T, alpha=-2).argmin(1)
