"""k-means with k-means++ seeding, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from audiolm_cli.codebook import nearest


@torch.no_grad()
def kmeans(points: Tensor, clusters: int, iterations: int = 20, seed: int = 0) -> Tensor:
    """Centroids `float32 [clusters, D]` of points `float32 [N, D]`, N >= clusters; empty clusters are re-seeded."""
    generator = torch.Generator().manual_seed(seed)
    sample = points[torch.randperm(len(points), generator=generator)[: 40 * clusters].to(points.device)]
    squares = sample.square().sum(1)

    def squared(centre: Tensor) -> Tensor:  # distances to the sample by one product: several times faster
        return (squares - 2 * (sample @ centre) + centre.square().sum()).clamp(min=0)

    centroids = sample[:1]
    distance = squared(sample[0])
    for _ in range(clusters - 1):  # k-means++: each next centre is sampled in proportion to the squared distance
        draw = float(torch.rand((), generator=generator)) * distance.double().sum()
        chosen = torch.searchsorted(distance.double().cumsum(0), draw).clamp(max=len(sample) - 1)
        centroids = torch.cat([centroids, sample[chosen][None]])
        distance = torch.minimum(distance, squared(sample[int(chosen)]))
    for _ in range(iterations):
        own = members(points, centroids)
        counts = torch.bincount(own, minlength=clusters)
        sums = torch.zeros_like(centroids).index_add_(0, own, points)
        centroids = sums / counts.clamp(min=1)[:, None]
        empty = counts == 0
        if empty.any():
            centroids[empty] = points[
                torch.randperm(len(points), generator=generator)[: int(empty.sum())].to(points.device)
            ]
    return centroids


def best_of(attempts: int, points: Tensor, clusters: int, iterations: int) -> Tensor:
    """The best centroids of several seedings of `kmeans`: those with the smallest squared distances to their points."""
    found = [kmeans(points, clusters, iterations, seed) for seed in range(attempts)]
    return min(found, key=lambda centroids: float((points - centroids[members(points, centroids)]).square().sum()))


def members(points: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest centroid for each point, `int64 [N]`, in blocks."""
    return torch.cat([nearest(part, centroids) for part in points.split(65536)])
