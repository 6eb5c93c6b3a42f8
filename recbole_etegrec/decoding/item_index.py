"""Finds the items of a large catalogue that an item head scores best, without scoring all of them.

faiss keeps their vectors, a byte a dimension, in lists around centroids; of the lists whose
centroids a query scores best, all items are scored. How many lists are enough is found on the first
queries, against the scores of all.
"""

import logging
import math
from importlib.util import find_spec

import numpy as np
import torch

logger = logging.getLogger(__name__)

_OF_A_LIST = 64  # vectors that centroids are found of
_FIRST, _TRIED = 8, 64  # lists that are looked through at first, and queries that are tried
_MORE = 2  # times as many are found as are wanted: a byte a dimension ranks roughly
_SEED = 0  # of the items that centroids are found of, and of where they begin
RECALL = 0.98  # of the best items of these queries


def can_index() -> bool:
    """Whether faiss is installed."""
    return find_spec("faiss") is not None


class ItemIndex:
    """An inverted file of vectors, which are on the CPU.

    Args:
        vectors: of items ``[N, d]``.
        ids: of these ``[N]``.

    Attributes:
        recall: the share of the best items that were found of the queries that were tried; None
            until :meth:`tune`.
    """

    def __init__(self, vectors: torch.Tensor, ids: torch.Tensor):
        logging.getLogger("faiss").setLevel("WARNING")
        import faiss

        lists = 2 ** round(math.log2(4 * math.sqrt(len(vectors))))
        lists = max(min(lists, len(vectors) // _OF_A_LIST), 1)
        logger.info("item index: of %d items, made once", len(vectors))
        kind = f"IVF{lists},SQ8"
        self._index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        self._index.cp.seed = _SEED
        rows = np.random.default_rng(_SEED).permutation(len(vectors))[: lists * _OF_A_LIST]
        self._index.train(vectors[torch.from_numpy(rows)].numpy())
        self._index.add_with_ids(vectors.numpy(), ids.numpy())
        self.probes, self.recall = min(_FIRST, lists), None

    @property
    def probes(self) -> int:
        """Lists that are looked through for a query."""
        return self._index.nprobe

    @probes.setter
    def probes(self, number: int) -> None:
        self._index.nprobe = number

    @property
    def lists(self) -> int:
        """Lists that there are."""
        return self._index.nlist

    def tune(self, query: torch.Tensor, vectors: torch.Tensor, ids: torch.Tensor, k: int) -> None:
        """Look through more lists until `RECALL` of the `k` best items of queries are found.

        Args:
            vectors: those that are indexed ``[N, d]``, with their ids ``[N]``.
        """
        import faiss

        query, k = query[:_TRIED], min(k, len(vectors))
        rows = faiss.knn(
            query.float().contiguous().numpy(), vectors.numpy(), k, faiss.METRIC_INNER_PRODUCT
        )[1]
        best = ids[torch.from_numpy(rows)]
        while True:
            found = self.search(query, k)
            self.recall = float((best.unsqueeze(2) == found.unsqueeze(1)).any(dim=2).float().mean())
            if self.recall >= RECALL or self.probes >= self.lists:
                break
            self.probes = min(2 * self.probes, self.lists)
        logger.info(
            "item index: %d lists of %d items, %d looked through: %.1f%% of the %d best found",
            self.lists,
            len(ids),
            self.probes,
            100 * self.recall,
            k,
        )

    def search(self, query: torch.Tensor, k: int) -> torch.Tensor:
        """Items that have the `k` best of queries ``[B, d]`` among them, as far as the lists do.

        Returns:
            Ids, about the best first ``[B, 2 * k]``; 0 where there are no more.
        """
        found = self._index.search(query.float().contiguous().numpy(), _MORE * k)[1]
        return torch.from_numpy(found).clamp_(min=0)
