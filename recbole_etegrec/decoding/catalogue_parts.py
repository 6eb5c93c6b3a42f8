"""The best items by an item head of a catalogue that is too large to hold all scores of a batch."""

import math
from collections.abc import Iterator

import torch

from recbole_etegrec.data.seen_items import HistoryIndex
from recbole_etegrec.decoding.item_index import ItemIndex
from recbole_etegrec.decoding.ranker import Ranking
from recbole_etegrec.recommender import EncodedHistory, ItemHead
from recbole_etegrec.recommender.repeats import among, came_before

AT_ONCE = 2**17  # items that are scored at once
SAMPLED = 2**14  # items of which the sum over all is estimated


class CatalogueParts:
    """Scores of the items of a catalogue for a batch of histories, a part of the items at a time.

    Args:
        absent: which items are not ranked ``[N]``.
        excluded: pairs of row and item that are not.
    """

    def __init__(
        self,
        head: ItemHead,
        history: EncodedHistory,
        absent: torch.Tensor,
        excluded: HistoryIndex | None,
    ):
        self.vectors, self.learned = head.all_vectors(), head.items
        self.query, self.absent, self.excluded = history.query, absent, excluded
        self.history, self.bonus = history.items, head.repeat_bonus  # what these have on top

    def cuts(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of a range of items."""
        return ((start, min(start + AT_ONCE, end)) for start in range(begin, end, AT_ONCE))

    def scores(self, start: int, end: int, ranked: bool = True) -> torch.Tensor:
        """Scores of a range of items ``[B, end - start]``.

        Args:
            ranked: whether they are -inf where an item is not to be ranked.
        """
        with torch.autocast(self.query.device.type, enabled=False):
            scores = self.query @ self.vectors[start:end].T
        if self.bonus is not None:
            inside = (self.history >= start) & (self.history < end)
            rows, places = inside.nonzero(as_tuple=True)
            items = self.history[rows, places] - start
            scores[rows, items] = scores[rows, items] + self.bonus  # once, if it is there twice
        return self.masked(scores, start, end) if ranked else scores

    def masked(self, scores: torch.Tensor, start: int, end: int) -> torch.Tensor:
        """The scores of a range of items, -inf where an item is not to be ranked."""
        scores.masked_fill_(self.absent[start:end], -torch.inf)
        if self.excluded is not None:
            rows, items = self.excluded
            inside = (items >= start) & (items < end)
            scores[rows[inside], items[inside] - start] = -torch.inf
        return scores

    def total(self) -> torch.Tensor:
        """The log of the sum of ``exp(score)`` of the items that the head learned ``[B, 1]``."""
        total = self.query.new_full((len(self.query), 1), -torch.inf)
        for start, end in self.cuts(1, self.learned):
            scores = self.scores(start, end, ranked=False)
            total = torch.logaddexp(total, scores.logsumexp(dim=1, keepdim=True))
        return total

    def log_probs_of(self, items: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of given items ``[B, n]``, as those of the head, for learned ones.

        Args:
            total: as :meth:`total` gives it.
        """
        return (self._scores_of(items) - total).masked_fill(items == 0, -torch.inf)

    def _scores_of(self, items: torch.Tensor) -> torch.Tensor:
        """Scores of given items ``[B, n]``."""
        with torch.autocast(self.query.device.type, enabled=False):
            scores = torch.einsum("bd,bnd->bn", self.query, self.vectors[items])
        if self.bonus is None:
            return scores
        return scores + self.bonus * among(items, self.history)

    def best(self, k: int) -> tuple[Ranking, torch.Tensor]:
        """The best of the items that the head learned, and the logarithm of the sum of all
        ``exp(score)`` of these ``[B, 1]``.
        """
        found = None
        total = self.query.new_full((len(self.query), 1), -torch.inf)
        for start, end in self.cuts(0, self.learned):
            scores = self.scores(start, end, ranked=False)
            if start == 0:
                scores[:, 0] = -torch.inf  # the padding item's
            total = torch.logaddexp(total, scores.logsumexp(dim=1, keepdim=True))
            part = leading(self.masked(scores, start, end), k, start)
            found = part if found is None else _best_of_both(found, part, k)
        return found, total

    def best_by(self, index: ItemIndex, k: int) -> tuple[Ranking, torch.Tensor]:
        """The same by an index, and with the sum estimated from one in so many items.

        Items of histories, of which the index does not know what they have on top, are scored.
        """
        further = 0
        if self.excluded is not None and len(self.excluded[0]):
            further = int(torch.bincount(self.excluded[0]).max())
        if self.bonus is not None:
            further += self.history.shape[1]
        items = index.search(self.query, k + further)
        scores = self._scores_of(items).masked_fill(items == 0, -torch.inf)
        if self.bonus is not None:
            scores = scores.masked_fill(among(items, self.history), -torch.inf)
            never = came_before(self.history) | self.absent[self.history]
            never |= self.history >= self.learned  # padding is absent
            own = self._scores_of(self.history).masked_fill(never, -torch.inf)
            scores = torch.cat([scores, own], dim=1)
            items = torch.cat([items, self.history], dim=1)
        if self.excluded is not None:
            rows = torch.arange(len(items), device=items.device).unsqueeze(1)
            count = len(self.absent)
            left_out = self.excluded[0] * count + self.excluded[1]
            scores = scores.masked_fill(torch.isin(rows * count + items, left_out), -torch.inf)
        best = scores.topk(min(k, scores.shape[1]))
        every = max(self.learned // SAMPLED, 1)
        sample = self.query @ self.vectors[1 : self.learned : every].T
        total = sample.logsumexp(dim=1, keepdim=True)
        total += math.log((self.learned - 1) / sample.shape[1])
        return Ranking(items.gather(1, best.indices), best.values), total


def leading(scores: torch.Tensor, k: int, first: int) -> Ranking:
    """The best of a run of items by their scores ``[B, n]``, the first of which has this id."""
    best = scores.topk(min(k, scores.shape[1]))
    return Ranking(best.indices + first, best.values)


def _best_of_both(one: Ranking, other: Ranking, k: int) -> Ranking:
    scores = torch.cat([one.scores, other.scores], dim=1)
    best = scores.topk(min(k, scores.shape[1]))
    return Ranking(torch.cat([one.items, other.items], dim=1).gather(1, best.indices), best.values)
