"""Ranking by any model that scores the whole catalogue in logits, such as RecBole's own."""

from collections.abc import Callable

import torch
from recbole.data.interaction import Interaction

from recbole_etegrec.data.seen_items import HistoryIndex
from recbole_etegrec.decoding.ranker import Ranker, Ranking


class LogitRanker(Ranker):
    """Ranks all items; a score is the log-softmax of the logits over the catalogue.

    Args:
        logits: of a batch, ``[B, N]`` by item id; -inf where an item is not ranked.
        n_items: items ``N``, the padding item included.
    """

    def __init__(self, logits: Callable[[Interaction], torch.Tensor], n_items: int):
        self.logits, self.n_items = logits, n_items

    def best(
        self, interaction: Interaction, k: int, excluded: HistoryIndex | None = None
    ) -> Ranking:
        """See :class:`Ranker`."""
        scores, items = self.score_all(interaction, excluded).topk(min(k, self.width(k)))
        return Ranking(items.masked_fill(scores.isneginf(), 0), scores)

    def score(self, interaction: Interaction, items: torch.Tensor) -> torch.Tensor:
        """See :class:`Ranker`."""
        return self.score_all(interaction).gather(1, items)

    def score_all(
        self, interaction: Interaction, excluded: HistoryIndex | None = None
    ) -> torch.Tensor:
        """See :class:`Ranker`."""
        scores = self._once(interaction, self._log_probs)
        if excluded is not None:
            scores = scores.clone()
            scores[tuple(part.to(scores.device) for part in excluded)] = -torch.inf
        return scores

    def width(self, k: int) -> int:
        """All items, whatever ``k`` is."""
        return self.n_items - 1

    def prepare(self) -> None:
        """See :class:`Ranker`; there is nothing to make."""

    @torch.no_grad()
    def _log_probs(self, interaction: Interaction) -> torch.Tensor:
        logits = self.logits(interaction).float().clone()
        logits[:, 0] = -torch.inf
        return logits.log_softmax(dim=1)
