"""What it is worth to an item that it is in the history: validation says, where codes cannot.

Codes are predicted one by one, so a model by codes alone hardly learns that nobody takes an item
twice, or that everybody does. An item head learns it (`item_repeats`).
"""

import torch
from recbole.data.interaction import Interaction

from recbole_etegrec.decoding.batch import BatchFields
from recbole_etegrec.decoding.ranker import CodeRanker, Part, Ranking
from recbole_etegrec.recommender import EncodedHistory, Recommender
from recbole_etegrec.recommender.repeats import among
from recbole_etegrec.tokenizer import ItemCodes

REPEAT_SCORES = (0.0, -1.0, -2.0, -4.0, -8.0, 1.0, 2.0)  # tried on validation


class RepeatAwareRanker(CodeRanker):
    """Ranks by codes, and by whether an item is in the history.

    Args:
        repeat_score: what the scores of items of the history have on top, in nats; None: it is
            left to validation, and 0 until then.
    """

    keys = ("repeat_score",)

    def __init__(
        self,
        recommender: Recommender,
        codes: ItemCodes,
        fields: BatchFields,
        *,
        repeat_score: float | None = None,
    ):
        super().__init__(recommender, codes, fields)
        self.given = repeat_score is not None
        self.repeat_score = float(repeat_score) if self.given else 0.0

    def _with_repeats(self, ranking: Ranking, interaction: Interaction) -> Ranking:
        if not self.repeat_score:
            return ranking
        history = interaction[self.fields.history].to(ranking.items.device)
        scores = ranking.scores + self.repeat_score * among(ranking.items, history)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return Ranking(ranking.items.gather(1, order), scores)

    def parts(self, history: EncodedHistory, items: torch.Tensor) -> dict[str, Part]:
        """See :class:`CodeRanker`."""
        parts = super().parts(history, items)
        if self.repeat_score:
            again = among(items, history.items).float()
            parts["in the history"] = Part(self.repeat_score, again)
        return parts

    def trials(self) -> list[CodeRanker]:
        """See :class:`CodeRanker`; of the scores in `REPEAT_SCORES`, if none is given."""
        return [] if self.given else self._trials_of("repeat_score", REPEAT_SCORES)

    @property
    def chosen(self) -> dict[str, float]:
        """See :class:`CodeRanker`."""
        return {} if self.given else {"repeat_score": self.repeat_score}

    def take(self, chosen: dict[str, float]) -> None:
        """See :class:`CodeRanker`; a score that was given stays."""
        if not self.given:
            self.repeat_score = chosen.get("repeat_score", self.repeat_score)
