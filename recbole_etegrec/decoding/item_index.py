"""Finds the items of a large catalogue that an item head scores best, without scoring all of them.

Vectors lie in lists around centroids; of the lists whose centroids a query scores best, all items
are scored. How many lists are enough is found on the first queries, against the scores of all.
"""

import logging
import math

import torch
from sklearn.cluster import MiniBatchKMeans

from recbole_etegrec.tokenizer.kmeans import nearest_of

logger = logging.getLogger(__name__)

_OF_A_LIST = 64  # vectors that centroids are found of
_FIRST, _TRIED = 8, 64  # lists that are looked through at first, and queries that are tried
RECALL = 0.98  # of the best items of these queries


class ItemIndex:
    """An inverted file of vectors.

    Args:
        vectors: of items ``[N, d]``; they are copied.
        ids: of these ``[N]``.

    Attributes:
        probes: lists that are looked through for a query.
        recall: the share of the best items that were found of the queries that were tried; None
            until :meth:`tune`.
    """

    def __init__(self, vectors: torch.Tensor, ids: torch.Tensor, seed: int = 0):
        lists = max(2 ** round(math.log2(math.sqrt(len(vectors)))), 1)
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(vectors), generator=generator)[: lists * _OF_A_LIST]
        found = MiniBatchKMeans(lists, batch_size=4096, n_init=1, max_iter=20, random_state=seed)
        found.fit(vectors[rows.to(vectors.device)].cpu().numpy())
        self.centroids = torch.from_numpy(found.cluster_centers_).to(vectors)
        order = nearest_of(vectors, self.centroids)
        order, rows = order.sort(stable=True)
        self.vectors, self.ids = vectors[rows], ids[rows]
        bounds = torch.arange(lists + 1, device=order.device)
        self.bounds = torch.searchsorted(order, bounds).tolist()
        self.probes, self.recall = min(_FIRST, lists), None

    def tune(self, query: torch.Tensor, k: int) -> None:
        """Look through more lists until `RECALL` of the `k` best items of queries are found."""
        query = query[:_TRIED]
        best = self._exact(query, k)
        while True:
            found = self.search(query, k)[1]
            hits = (best.unsqueeze(2) == found.unsqueeze(1)).any(dim=2)
            self.recall = float(hits.float().mean())
            if self.recall >= RECALL or self.probes >= len(self.centroids):
                break
            self.probes = min(2 * self.probes, len(self.centroids))
        logger.info(
            "item index: %d lists of %d items, %d looked through: %.1f%% of the %d best found",
            len(self.centroids),
            len(self.ids),
            self.probes,
            100 * self.recall,
            k,
        )

    def search(self, query: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The best items of queries ``[B, d]`` in the lists that are looked through.

        Returns:
            Scores and ids ``[B, k]``, -inf and 0 where there are no more.
        """
        chosen = (query @ self.centroids.T).topk(self.probes).indices  # [B, P]
        shape = (*chosen.shape, k)
        scores = query.new_full(shape, -torch.inf)
        ids = torch.zeros(shape, dtype=torch.long, device=query.device)
        order = chosen.flatten().argsort(stable=True)
        lists, counts = chosen.flatten()[order].unique_consecutive(return_counts=True)
        for number, places in zip(lists.tolist(), order.split(counts.tolist()), strict=True):
            start, end = self.bounds[number], self.bounds[number + 1]
            rows, probe = places // chosen.shape[1], places % chosen.shape[1]
            of_list = query[rows] @ self.vectors[start:end].T
            best = of_list.topk(min(k, end - start))
            scores[rows, probe, : best.values.shape[1]] = best.values
            ids[rows, probe, : best.values.shape[1]] = self.ids[start + best.indices]
        best = scores.flatten(1).topk(min(k, self.probes * k))
        return best.values, ids.flatten(1).gather(1, best.indices)

    def _exact(self, query: torch.Tensor, k: int) -> torch.Tensor:
        """The best items of all ``[B, k]``."""
        found = [(query @ part.T).topk(min(k, len(part))) for part in self.vectors.split(2**17)]
        starts = range(0, len(self.vectors), 2**17)
        scores = torch.cat([part.values for part in found], dim=1)
        rows = torch.cat([p.indices + s for p, s in zip(found, starts, strict=True)], dim=1)
        best = scores.topk(min(k, scores.shape[1])).indices
        return self.ids[rows.gather(1, best)]
