"""Several models as one, to rank with; see `RankingModel`."""

from collections.abc import Iterator, Sequence

import torch
from recbole.data.interaction import Interaction

from recbole_etegrec.decoding import BatchFields, EnsembleRanker, Member


class EnsembleModel:
    """Models of one catalogue, which are loaded when they are needed.

    It has no codes and no recommender of its own: those of its members tell items apart, each in
    its way.

    Args:
        members: at least one; two may be of one model.
        fields: of the batches.
        n_items: items, the padding item included.
        max_history: items of a history that any member sees at most.
        exclude_history: whether items of a history leave its ranking, where nothing else is said.
        candidates: items that each member proposes, at least.
        left_out: items that are gone from the data ``[n]``.
        device: where it computes.
    """

    precision = "fp32"  # of sums over members, each of which has a precision of its own
    item_embedding = None

    def __init__(
        self,
        members: Sequence[Member],
        fields: BatchFields,
        *,
        n_items: int,
        max_history: int,
        exclude_history: bool,
        candidates: int,
        left_out: torch.Tensor,
        device: torch.device,
    ):
        self.fields, self.max_history = fields, max_history
        self.n_items = self.trained_items = n_items
        self.exclude_history, self.left_out, self.device = exclude_history, left_out, device
        self.ranker = EnsembleRanker(members, fields, n_items, candidates=candidates, device=device)

    @property
    def members(self) -> list[Member]:
        """In the order in which they were named."""
        return self.ranker.members

    def weigh(self, weights: Sequence[float]) -> None:
        """Take other weights of the members; those that weigh nothing are left out from then on."""
        for member, weight in zip(self.members, weights, strict=True):
            member.weight = weight
        self.ranker.members = [member for member in self.members if member.weight]

    def eval(self) -> "EnsembleModel":
        """Members are in evaluation mode."""
        return self

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """The score of the item in each row ``[B]``."""
        items = interaction[self.fields.item].unsqueeze(1)
        return self.ranker.score(interaction, items).squeeze(1)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores ``[B, n_items]``, -inf where an item is not ranked."""
        return self.ranker.score_all(interaction)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Of all members, one member in memory at a time."""
        for member in self.members:
            yield from member.borrow(lambda model: list(model.parameters()))
