"""k-means, on the device that the vectors are on."""

import math
from typing import NamedTuple

import numpy as np
import torch
from sklearn.cluster import KMeans

_ROUNDS, _STILL = 300, 1e-4  # as scikit-learn's: rounds at most, and the movement of none
_LEAST = 1e-30
SAMPLED = 256  # vectors a cluster, of which the centroids of more vectors are found
ROWS = 65536  # vectors handled at once where only their nearest centroids are wanted


class Clusters(NamedTuple):
    """Attributes: centroids ``[K, D]``, and the nearest of each vector ``[N]``."""

    centroids: torch.Tensor
    nearest: torch.Tensor


def distinct_rows(vectors: torch.Tensor, most: int | None = None) -> int:
    """How many rows ``[N, D]`` differ.

    Args:
        most: no more are counted, so that not all rows need to be looked at.
    """
    rows = len(vectors) if most is None else 16 * most
    while most is not None and rows < len(vectors):
        if distinct_rows(vectors[:rows]) >= most:
            return most
        rows *= 4
    if vectors.device.type == "cpu":
        found = len(np.unique(vectors.numpy(), axis=0))
    else:
        found = len(vectors.unique(dim=0))
    return found if most is None else min(found, most)


def kmeans(vectors: torch.Tensor, clusters: int, seed: int) -> Clusters:
    """Cluster vectors ``[N, D]``, of which at least `clusters` differ.

    Of more than `SAMPLED` vectors a cluster, the centroids are those of a random sample.
    """
    if len(vectors) > SAMPLED * clusters:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(vectors), generator=generator)[: SAMPLED * clusters]
        centroids = kmeans(vectors[rows.sort().values.to(vectors.device)], clusters, seed).centroids
        return Clusters(centroids, nearest_of(vectors, centroids))
    if vectors.device.type != "cpu":
        return kmeans_by_products(vectors, clusters, seed)
    found = KMeans(clusters, n_init=1, random_state=seed).fit(vectors.numpy())
    return Clusters(torch.from_numpy(found.cluster_centers_), torch.from_numpy(found.labels_))


def nearest_of(vectors: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """The nearest centroid of each vector ``[N]``."""
    return torch.cat([_distances(p, centroids).argmin(dim=1) for p in vectors.split(ROWS)])


def kmeans_by_products(vectors: torch.Tensor, clusters: int, seed: int) -> Clusters:
    """Lloyd's rounds as matrix products, from a greedy k-means++ start, as scikit-learn's.

    A cluster that loses all its vectors keeps its centroid.
    """
    generator = torch.Generator(vectors.device).manual_seed(seed)
    centroids = _spread_start(vectors, clusters, generator)
    still = _STILL * vectors.var(dim=0).mean()
    for _ in range(_ROUNDS):
        member = torch.zeros(len(vectors), clusters, device=vectors.device)
        member.scatter_(1, _distances(vectors, centroids).argmin(dim=1, keepdim=True), 1.0)
        sizes = member.sum(dim=0).unsqueeze(1)  # [K, 1]
        means = member.T @ vectors / sizes.clamp_min(1)
        moved = torch.where(sizes > 0, means, centroids)
        distance = (moved - centroids).square().sum()
        centroids = moved
        if distance <= still:
            break
    return Clusters(centroids, _distances(vectors, centroids).argmin(dim=1))


def _spread_start(vectors: torch.Tensor, clusters: int, generator: torch.Generator) -> torch.Tensor:
    """Vectors far from each other: of a few drawn by distance, the one that spares most of it."""
    trials = 2 + int(math.log(clusters))
    first = torch.randint(len(vectors), (1,), generator=generator, device=vectors.device)
    chosen = [vectors[first]]
    nearest = _distances(vectors, chosen[0]).squeeze(1)  # [N]
    for _ in range(clusters - 1):
        chances = nearest + _LEAST  # distances of rows that hardly differ may all be 0
        drawn = torch.multinomial(chances, trials, replacement=True, generator=generator)
        candidates = torch.minimum(_distances(vectors, vectors[drawn]), nearest.unsqueeze(1))
        best = candidates.sum(dim=0).argmin().view(1)
        chosen.append(vectors[drawn[best]])
        nearest = candidates.index_select(1, best).squeeze(1)
    return torch.cat(chosen)


def _distances(vectors: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Squared distances ``[N, K]``."""
    product = vectors @ centroids.T
    squares = vectors.square().sum(dim=1, keepdim=True) + centroids.square().sum(dim=1)
    return (squares - 2 * product).clamp_min_(0)
