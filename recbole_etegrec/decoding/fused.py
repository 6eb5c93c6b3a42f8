"""Ranking by the item head, alone or together with the codes.

The head scores the whole catalogue at the price of one matrix product, so it proposes; codes are
then scored for what it proposes alone, as branches behind the shared history.
"""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from recbole.data.interaction import Interaction

from recbole_etegrec.config import Config
from recbole_etegrec.data.seen_items import HistoryIndex
from recbole_etegrec.decoding.batch import BatchFields
from recbole_etegrec.decoding.catalogue_parts import AT_ONCE, CatalogueParts, leading
from recbole_etegrec.decoding.item_index import ItemIndex, can_index
from recbole_etegrec.decoding.new_items import among_new, spaced
from recbole_etegrec.decoding.ranker import CodeRanker, Part, Ranking, candidate_rules
from recbole_etegrec.decoding.scoring import score_items
from recbole_etegrec.recommender import EncodedHistory, Recommender
from recbole_etegrec.tokenizer import ItemCodes, Trie

logger = logging.getLogger(__name__)

WEIGHTS = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0)  # of the item head, tried on validation
_WEIGHT = 2.0  # until then


class HeadRanker(CodeRanker):
    """Ranks all items by the item head alone.

    Args:
        new_item_every: of so many places, one is for an item that came after training, see
            `decoding/new_items.py`.
        new_item_bonus: what the scores of these have on top.

    Attributes:
        candidates: items that are scored at least; here it is all of them, whatever it says.
    """

    keys = ("new_item_every",)
    candidates = 0

    def __init__(
        self,
        recommender: Recommender,
        codes: ItemCodes,
        fields: BatchFields,
        *,
        new_item_every: int = 10,
        new_item_bonus: float = 0.0,
    ):
        super().__init__(recommender, codes, fields)
        self.new_item_every, self.new_item_bonus = new_item_every, new_item_bonus

    @staticmethod
    def rules(config: Config) -> Iterator[tuple[bool, str]]:
        """There must be a head."""
        yield (
            not config["item_head"],
            f"ranking ({config['ranking']}) needs an item head: train with item_head: True",
        )

    def best(
        self, interaction: Interaction, k: int, excluded: HistoryIndex | None = None
    ) -> Ranking:
        """See :class:`Ranker`."""
        return self.find(interaction, k, excluded)

    def propose(
        self, interaction: Interaction, k: int, excluded: HistoryIndex | None = None
    ) -> torch.Tensor:
        """See :class:`Ranker`; what the head ranks first."""
        return self._best_by_head(self.encode(interaction), k, excluded).items

    @property
    def held(self) -> tuple[Any, ...]:
        """See :class:`CodeRanker`."""
        own = self.new_item_every, self.new_item_bonus
        return *super().held, self.recommender.item_head.all_vectors(), *own

    @property
    def can_record(self) -> bool:
        """See :class:`CodeRanker`; of a large catalogue parts are found in turn."""
        return super().can_record and len(self.codes.table) <= AT_ONCE

    def search(
        self,
        history: EncodedHistory,
        width: int,
        excluded: HistoryIndex | None,
        *,
        whole: bool = False,
    ) -> Ranking:
        """See :class:`CodeRanker`; the best by the head."""
        return self._best_by_head(history, width, excluded)

    def _best_by_head(
        self, history: EncodedHistory, k: int, excluded: HistoryIndex | None
    ) -> Ranking:
        learned, later = self._leading(history, k, excluded)
        scores = torch.cat([learned.scores, later.scores + self.new_item_bonus], dim=1)
        items = torch.cat([learned.items, later.items], dim=1)
        scores, order = self._spaced(scores, items).topk(
            min(k, scores.shape[1], len(self.codes.table) - 1)
        )
        return Ranking(items.gather(1, order).masked_fill(scores.isneginf(), 0), scores)

    def _spaced(self, scores: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """The scores ``[B, n]`` by which items are ranked, new ones among them where there are."""
        learned = self.recommender.item_head.items
        if len(self.codes.table) == learned:
            return scores
        return spaced(scores, items >= learned, self.new_item_every)

    def _leading(
        self, history: EncodedHistory, k: int, excluded: HistoryIndex | None
    ) -> tuple[Ranking, Ranking]:
        """The best of the items that the head learned, and of those that came later, if any.

        Scores are those of :meth:`_log_probs`; of a large catalogue never more than a part of them
        is held.
        """
        learned = self.recommender.item_head.items
        if len(self.codes.table) > AT_ONCE:
            return self._leading_of_many(history, k, excluded)
        log_probs = self._log_probs(history, excluded)
        return leading(log_probs[:, :learned], k, 0), leading(log_probs[:, learned:], k, learned)

    def _leading_of_many(
        self, history: EncodedHistory, k: int, excluded: HistoryIndex | None
    ) -> tuple[Ranking, Ranking]:
        head, count = self.recommender.item_head, len(self.codes.table)
        parts = CatalogueParts(head, history, self._absent(), excluded and self.on_device(excluded))
        index = self._present_index(parts, k)
        found, total = parts.best(k) if index is None else parts.best_by(index, k)
        more = parts.masked(self._later(parts, history, total), head.items, count)
        return Ranking(found.items, found.scores - total), leading(more, k, head.items)

    def _later(
        self, parts: CatalogueParts, history: EncodedHistory, total: torch.Tensor
    ) -> torch.Tensor:
        """Log-probabilities of the items that came after training ``[B, n]``, among these."""
        head, count = self.recommender.item_head, len(self.codes.table)
        scores = [parts.scores(*cut, ranked=False) for cut in parts.cuts(head.items, count)]
        more = torch.cat([total[:, :0], *scores], dim=1) - total
        if history.taste is not None and more.shape[1]:
            more += head.likeness * history.taste @ head.alike[head.items :].T
        return among_new(more, self._temperature)

    def _present_index(self, parts: CatalogueParts, k: int) -> ItemIndex | None:
        """An index of the present vectors of the items that are ranked; None: all are scored."""
        return None

    def score_all(
        self, interaction: Interaction, excluded: HistoryIndex | None = None
    ) -> torch.Tensor:
        """See :class:`Ranker`."""
        scores = self._log_probs(self.encode(interaction), excluded)
        scores[:, self.recommender.item_head.items :] += self.new_item_bonus
        items = torch.arange(scores.shape[1], device=scores.device)
        return self._spaced(scores, items.expand_as(scores))

    def width(self, k: int) -> int:
        """All items, whatever ``k`` is."""
        return len(self.codes.table) - 1

    def parts(self, history: EncodedHistory, items: torch.Tensor) -> dict[str, Part]:
        """See :class:`CodeRanker`."""
        head = self.recommender.item_head
        parts = {"item head": Part(1.0, self._log_probs_of(history, items))}
        if len(self.codes.table) > head.items:
            parts["new item"] = Part(self.new_item_bonus, (items >= head.items).float())
        return parts

    def _log_probs_of(self, history: EncodedHistory, items: torch.Tensor) -> torch.Tensor:
        """Of given items by the head ``[B, n]``, of new ones among these."""
        head = self.recommender.item_head
        if len(self.codes.table) <= AT_ONCE:
            return self._all_log_probs(history).gather(1, items)
        parts = CatalogueParts(head, history, self._absent(), None)
        total = parts.total()
        found = parts.log_probs_of(items, total)
        if len(self.codes.table) == head.items:
            return found
        later = self._later(parts, history, total)
        later = later.gather(1, (items - head.items).clamp(min=0))
        return torch.where(items >= head.items, later, found)

    @property
    def _temperature(self) -> float:
        """Of the softmax over new items: their score is one log-probability by the head."""
        return 1.0

    def _absent(self) -> torch.Tensor:
        """Which items are not ranked ``[N]``."""
        table = self.codes.table
        absent = torch.ones(len(table), dtype=torch.bool, device=table.device)
        return absent.index_fill_(0, self.codes.trie.items, False)

    @property
    def chosen(self) -> dict[str, float]:
        """See :class:`CodeRanker`."""
        return {"new_item_bonus": self.new_item_bonus} if self.new_item_bonus else {}

    def take(self, chosen: dict[str, float]) -> None:
        """See :class:`CodeRanker`."""
        self.new_item_bonus = chosen.get("new_item_bonus", self.new_item_bonus)

    def _all_log_probs(self, history: EncodedHistory) -> torch.Tensor:
        head = self.recommender.item_head
        log_probs = head.log_probs(history.query, history.items, history.taste)
        if log_probs.shape[1] > head.items:
            log_probs[:, head.items :] = among_new(log_probs[:, head.items :], self._temperature)
        return log_probs

    def _log_probs(self, history: EncodedHistory, excluded: HistoryIndex | None) -> torch.Tensor:
        """Of all items by the head ``[B, N]``, -inf of those that are not to be ranked."""
        log_probs = self._all_log_probs(history)
        if len(self.codes.trie) < log_probs.shape[1] - 1:  # items without codes
            log_probs.masked_fill_(self._absent(), -torch.inf)
        if excluded is not None:
            # A number that is on the device: none can be brought there while a GPU records.
            none = log_probs.new_full((), -torch.inf)
            log_probs.index_put_(self.on_device(excluded), none)
        return log_probs


class Proposals(NamedTuple):
    """What the head proposes, with both scores ``[B, K]``; the head's is -inf where K is too many.

    Attributes:
        items: ids.
        codes: sums of the log-probabilities of their codes; 0 of items that came after training.
        head: log-probabilities by the item head.
    """

    items: torch.Tensor
    codes: torch.Tensor
    head: torch.Tensor


class FusedRanker(HeadRanker):
    """Ranks what the item head proposes by ``sum_j log p(code_j) + a log p_head(item)``.

    Of items that came after training it proposes as many as of the others, which it proposes as if
    there were no more. Codes say nothing of them that is worth it: the head alone scores them.

    Args:
        candidates: items that the head proposes, at least.
        item_score_weight: the weight ``a``; None: it is left to validation, and 2 until then.
        item_index_from: items from which on an index finds what the head proposes; None: never.
    """

    keys = ("candidates", "item_score_weight", "item_index_from", *HeadRanker.keys)

    def __init__(
        self,
        recommender: Recommender,
        codes: ItemCodes,
        fields: BatchFields,
        *,
        candidates: int,
        item_score_weight: float | None,
        item_index_from: int | None = None,
        **of_new_items: Any,
    ):
        super().__init__(recommender, codes, fields, **of_new_items)
        self.candidates, self.item_index_from = candidates, item_index_from
        self._index: tuple[torch.Tensor, Trie, ItemIndex] | None = None
        self._told = False  # that there could be one
        self.given = item_score_weight is not None
        self.weight = float(item_score_weight) if self.given else _WEIGHT

    @staticmethod
    def rules(config: Config) -> Iterator[tuple[bool, str]]:
        """Candidates must hold what is measured."""
        yield from HeadRanker.rules(config)
        yield from candidate_rules(config)

    def best(
        self, interaction: Interaction, k: int, excluded: HistoryIndex | None = None
    ) -> Ranking:
        """See :class:`Ranker`."""
        found = self._propose(interaction, self.width(k), excluded)
        scores = self._spaced(self._fuse(found), found.items)
        scores, order = scores.topk(min(k, found.items.shape[1]))
        items = found.items.gather(1, order)
        return Ranking(items.masked_fill(scores.isneginf(), 0), scores)

    def score_all(
        self, interaction: Interaction, excluded: HistoryIndex | None = None
    ) -> torch.Tensor:
        """See :class:`Ranker`; finite are the scores of ``candidates`` items at most."""
        found = self._propose(interaction, self.width(1), excluded)
        shape = len(found.items), len(self.codes.table)
        scores = found.head.new_full(shape, -torch.inf)
        return scores.scatter_(1, found.items, self._spaced(self._fuse(found), found.items))

    def width(self, k: int) -> int:
        """See :class:`Ranker`."""
        return min(max(k, self.candidates), len(self.codes.table) - 1)

    def parts(self, history: EncodedHistory, items: torch.Tensor) -> dict[str, Part]:
        """See :class:`CodeRanker`."""
        parts = super().parts(history, items)
        codes = score_items(self.recommender, history, self.codes(items))
        codes = codes.masked_fill(items >= self.recommender.item_head.items, 0)
        head = Part(self.weight, parts["item head"].log_probs)
        return {"codes": Part(1.0, codes), **parts, "item head": head}

    @property
    def mass(self) -> float:
        """See :class:`Ranker`."""
        return 1.0 + self.weight

    @property
    def held(self) -> tuple[Any, ...]:
        """See :class:`CodeRanker`."""
        return *super().held, self.weight

    @property
    def _temperature(self) -> float:
        """See :class:`HeadRanker`; a score is ``1 + a`` log-probabilities, ``a`` by the head."""
        return self.mass / self.weight

    def trials(self) -> list[CodeRanker]:
        """See :class:`CodeRanker`; of the weights in `WEIGHTS`, if none is given."""
        if self.given or len(self.codes.table) > self.recommender.item_head.items:
            return []  # or items were added
        return self._trials_of("weight", WEIGHTS)

    @property
    def chosen(self) -> dict[str, float]:
        """See :class:`CodeRanker`."""
        weight = {} if self.given else {"item_score_weight": self.weight}
        return {**weight, **super().chosen}

    def take(self, chosen: dict[str, float]) -> None:
        """See :class:`CodeRanker`; a weight that was given stays."""
        super().take(chosen)
        if not self.given and "item_score_weight" in chosen:
            self.weight = chosen["item_score_weight"]

    def _present_index(self, parts: CatalogueParts, k: int) -> ItemIndex | None:
        """See :class:`HeadRanker`; it is made anew when vectors or codes are others."""
        least, trie = self.item_index_from, self.codes.trie
        vectors = parts.vectors
        # A GPU scores all items sooner than an index on the CPU finds some.
        if least is None or len(trie) < max(least, 1) or vectors.device.type != "cpu":
            return None
        if not can_index():
            if not self._told:
                logger.warning(
                    "all %d items are scored for each user; pip install faiss-cpu for an index",
                    len(trie),
                )
            self._told = True
            return None
        if self._index is None or self._index[0] is not vectors or self._index[1] is not trie:
            items = trie.items[trie.items < self.recommender.item_head.items]
            own = vectors[items]
            index = ItemIndex(own, items)
            index.tune(parts.query, own, items, k)
            self._index = vectors, trie, index
        return self._index[2]

    def _fuse(self, found: Proposals) -> torch.Tensor:
        new = found.items >= self.recommender.item_head.items
        return found.codes + self.weight * found.head + self.new_item_bonus * new

    def _propose(
        self, interaction: Interaction, width: int, excluded: HistoryIndex | None
    ) -> Proposals:
        return self._found_once(interaction, width, lambda: self.find(interaction, width, excluded))

    def search(
        self,
        history: EncodedHistory,
        width: int,
        excluded: HistoryIndex | None,
        *,
        whole: bool = False,
    ) -> Proposals:
        """See :class:`CodeRanker`; what the head proposes, scored."""
        (items, head), later = self._leading(history, width, excluded)
        codes = score_items(self.recommender, history, self.codes(items), whole=whole)
        if later.items.shape[1]:
            items = torch.cat([items, later.items], dim=1)
            head = torch.cat([head, later.scores], dim=1)
            codes = torch.cat([codes, torch.zeros_like(later.scores)], dim=1)
        return Proposals(items, codes, head)
