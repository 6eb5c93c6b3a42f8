"""Ranking the items of a model: what its recommender says of the tuples in its code table.

It needs no dataset and no item embeddings, so that an exported model ranks as a trained one does.
"""

import torch
from recbole.data.interaction import Interaction

from recbole_etegrec.data.seen_items import HistoryIndex
from recbole_etegrec.decoding import ExactRanking, beam_search, code_log_probs, score_items
from recbole_etegrec.decoding.beam import Ranking
from recbole_etegrec.recommender import EncodedHistory, Recommender
from recbole_etegrec.tokenizer import ItemCodes


class RanksItems:
    """What a module with a recommender and a code table can do.

    Attributes:
        ITEM_SEQ, ITEM_SEQ_LEN, ITEM_ID: RecBole's names of the fields of a batch.
        n_items: the padding item included.
        max_history: items of a history that are seen at most.
        precision: of the weights and sums, a name in `DTYPES`.
        ranking: ``beam`` or ``exact``.
        num_beams: of a beam search, at least.
        exclude_history: whether items of a history leave its ranking, where nothing else is said.
    """

    ITEM_SEQ: str
    ITEM_SEQ_LEN: str
    ITEM_ID: str
    n_items: int
    max_history: int
    precision: str
    ranking: str
    num_beams: int
    exclude_history: bool
    recommender: Recommender
    codes: ItemCodes
    _exact: ExactRanking | None = None

    def recommend(
        self, interaction: Interaction, k: int, excluded: HistoryIndex | None = None
    ) -> Ranking:
        """The ``k`` best items after each history, best first, with their log-probabilities.

        Beam search with at least ``num_beams`` beams, or all items with ``ranking: exact``.

        Args:
            interaction: RecBole rows with ``item_id_list`` ``[B, T]`` and ``item_length`` ``[B]``.
            excluded: distinct pairs of row and item that are not to be ranked. A row left with
                fewer than ``k`` items ends in item 0 with score -inf.
        """
        if self.ranking == "exact":
            scores = self.full_sort_predict(interaction, excluded)
            scores, items = scores.topk(min(k, self.n_items - 1))
            return Ranking(items.masked_fill(scores.isneginf(), 0), scores)
        ranking = self._beams(interaction, max(k, self.num_beams), excluded)
        return Ranking(ranking.items[:, :k], ranking.scores[:, :k])

    def full_sort_predict(
        self, interaction: Interaction, excluded: HistoryIndex | None = None
    ) -> torch.Tensor:
        """Scores ``[B, n_items]``: log-probabilities where ranked, -inf elsewhere."""
        if self.ranking == "exact":
            scores = self._exact_ranking()(self._encode(interaction))
            if excluded is not None:
                scores[self._on_device(excluded)] = -torch.inf
            return scores
        ranking = self._beams(interaction, self.num_beams, excluded)
        scores = ranking.scores.new_full((len(ranking.items), self.n_items), -torch.inf)
        return scores.scatter_(1, ranking.items, ranking.scores)

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """``log p(item | history)`` of the item in each row ``[B]``."""
        candidates = interaction[self.ITEM_ID].unsqueeze(1)
        return self.score_candidates(interaction, candidates).squeeze(1)

    def score_candidates(self, interaction: Interaction, items: torch.Tensor) -> torch.Tensor:
        """``log p(item | history)`` of several items after each history: ``[B, n]``."""
        return score_items(self.recommender, self._encode(interaction), self.codes(items))

    def predict_codes(self, interaction: Interaction) -> torch.Tensor:
        """Log-probabilities of all codes at each level, given the codes before it of the item in
        each row: ``[B, L, C]``. Those of the item's own codes sum to what `predict` returns.
        """
        codes = self.codes(interaction[self.ITEM_ID].unsqueeze(1))
        return code_log_probs(self.recommender, self._encode(interaction), codes).squeeze(1)

    def _beams(
        self, interaction: Interaction, num_beams: int, excluded: HistoryIndex | None
    ) -> Ranking:
        history = self._encode(interaction)
        excluded = excluded and self._on_device(excluded)
        return beam_search(self.recommender, self.codes.trie, history, num_beams, excluded)

    def _on_device(self, index: HistoryIndex) -> HistoryIndex:
        rows, items = index
        return rows.to(self.codes.table.device), items.to(self.codes.table.device)

    def _exact_ranking(self) -> ExactRanking:
        if self._exact is None or self._exact.trie is not self.codes.trie:
            self._exact = ExactRanking(self.recommender, self.codes.trie)
        return self._exact

    @torch.no_grad()
    def _encode(self, interaction: Interaction) -> EncodedHistory:
        history, length = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        history = history[:, : int(length.max())]
        return self.recommender.encode_history(self.codes(history), history > 0)
