"""RecBole's collector of rankings, for models that do not score every item."""

import torch
from recbole.data.interaction import Interaction
from recbole.evaluator import Collector
from recbole.evaluator.collector import DataStruct
from torch.nn import functional as F

_OF_SCORES = ("rec.meanrank", "rec.score", "data.label")
_RANKINGS = ("rec.topk", "rec.items", *_OF_SCORES)


class RankingCollector(Collector):
    """Takes a score of -inf to mean that the item was not ranked.

    RecBole fills its top K from such items in arbitrary order, so an item that no beam reached
    could count as a hit.
    """

    def eval_batch_collect(
        self,
        scores_tensor: torch.Tensor,
        interaction: Interaction,
        positive_u: torch.Tensor,
        positive_i: torch.Tensor,
    ) -> None:
        """Collect one batch.

        `scores_tensor` is [B, N], or [rows] for value metrics; the positive items are given as
        pairs of row (`positive_u`) and item (`positive_i`).
        """
        if scores_tensor.dim() == 2:  # there may be fewer items than the largest K
            missing = max(max(self.topk) - scores_tensor.shape[1], 0)
            scores_tensor = F.pad(scores_tensor, (0, missing), value=-torch.inf)
        super().eval_batch_collect(scores_tensor, interaction, positive_u, positive_i)
        if scores_tensor.dim() < 2:
            return
        ranked = (~torch.isneginf(scores_tensor)).sum(dim=1, keepdim=True)  # [B, 1]
        places = torch.arange(max(self.topk), device=scores_tensor.device)
        unranked = places >= ranked  # [B, K]
        # "rec.topk" has a further column, the number of positive items.
        for name in ("rec.topk", "rec.items"):
            if self.register.need(name):
                batch = self.data_struct.get(name)[-len(scores_tensor) :, : len(places)]
                batch.masked_fill_(unranked, 0)  # no hit; the padding item

    @property
    def needs_scores(self) -> bool:
        """Whether a metric asks for more than each user's best items."""
        return any(self.register.need(name) for name in _OF_SCORES)

    def collect_best_items(
        self,
        items: torch.Tensor,
        _interaction: Interaction,
        positive_u: torch.Tensor,
        positive_i: torch.Tensor,
    ) -> None:
        """Collect one batch of best items ``[B, K]`` alone, best first, 0 where there are none.

        What is collected is the same as `eval_batch_collect` makes of scores of all items.
        """
        largest = max(self.topk)
        items = F.pad(items[:, :largest], (0, max(largest - items.shape[1], 0)))
        if self.register.need("rec.items"):
            self.data_struct.update_tensor("rec.items", items)
        if self.register.need("rec.topk"):
            rows = torch.arange(len(items), device=items.device).unsqueeze(1)
            wanted = torch.stack([positive_u, positive_i]).to(items.device)  # [2, positives]
            base = int(wanted[1].max()) + 1
            hits = torch.isin(rows * base + items, wanted[0] * base + wanted[1])
            hits &= (items > 0) & (items < base)
            counts = torch.bincount(wanted[0], minlength=len(items)).unsqueeze(1)
            self.data_struct.update_tensor("rec.topk", torch.cat([hits, counts], dim=1).int())

    def take_batch(self) -> dict[str, torch.Tensor]:
        """What was collected of rankings so far, on the CPU; it is forgotten here."""
        names = [name for name in _RANKINGS if name in self.data_struct]
        taken = {name: self.data_struct.get(name).cpu() for name in names}
        for name in names:
            del self.data_struct[name]
        return taken

    def put_batch(self, batch: dict[str, torch.Tensor]) -> None:
        """Add what :meth:`take_batch` gave, of this process or of another."""
        for name, value in batch.items():
            self.data_struct.update_tensor(name, value)

    def get_data_struct(self) -> DataStruct:
        """All that was collected, on the CPU; the rankings are forgotten.

        RecBole calls ``.cpu()`` on the counts that ItemCoverage, GiniIndex and others need.
        """
        counts = {
            name: value
            for name, value in self.data_struct._data_dict.items()
            if not isinstance(value, torch.Tensor)
        }
        for name in counts:
            del self.data_struct[name]
        collected = super().get_data_struct()
        for name, value in counts.items():
            self.data_struct.set(name, value)
            collected.set(name, value)
        return collected
