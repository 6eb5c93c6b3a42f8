"""Ranking with or without the items of a user's history, by one rule for every model.

RecBole removes them for general models and keeps them for sequential ones, which makes the two
hard to compare; the key ``exclude_history`` settles it for both.
"""

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset

from recbole_etegrec.config import Config
from recbole_etegrec.data.sequences import place_in_run

# Rows of a batch, and for each an item of its user's history.
HistoryIndex = tuple[torch.Tensor, torch.Tensor]


class SeenItems:
    """The distinct items of each user in some parts of a dataset.

    Args:
        parts: of one split; rows may carry histories, as those of sequential datasets do.
    """

    def __init__(self, parts: list[Dataset]):
        self.n_items = parts[0].item_num
        keys = np.unique(np.concatenate([key for part in parts for key in self._keys(part)]))
        users, self.items = np.divmod(keys, self.n_items)
        self.offsets = np.searchsorted(users, np.arange(parts[0].user_num + 1))

    def _keys(self, part: Dataset) -> list[np.ndarray]:
        feat = part.inter_feat
        users = feat[part.uid_field].numpy()
        keys = [users * self.n_items + feat[part.iid_field].numpy()]
        field = getattr(part, "item_id_list_field", None)
        if field in feat:
            rows, columns = np.nonzero(feat[field].numpy())
            keys.append(users[rows] * self.n_items + feat[field].numpy()[rows, columns])
        return keys

    def index(self, users: np.ndarray, positive: HistoryIndex) -> HistoryIndex:
        """Pairs of row and seen item for a batch of users ``[B]``, its positive items left out."""
        counts = np.diff(self.offsets)[users]
        rows = np.repeat(np.arange(len(users)), counts)
        items = self.items[self.offsets[users][rows] + place_in_run(counts)]
        wanted = positive[0].numpy() * self.n_items + positive[1].numpy()
        kept = ~np.isin(rows * self.n_items + items, wanted)
        return torch.from_numpy(rows[kept]), torch.from_numpy(items[kept])


class FullSortLoader(FullSortEvalDataLoader):
    """RecBole's loader with the history to remove from the ranking, or with none.

    Args:
        seen: what to remove; None removes nothing.
    """

    def __init__(self, config: Config, dataset: Dataset, sampler, seen: SeenItems | None):
        super().__init__(config, dataset, sampler)
        self.seen = seen

    def collate_fn(self, index) -> tuple:
        """RecBole's batch ``(interaction, history_index, positive_u, positive_i)``."""
        interaction, _, *positive = super().collate_fn(index)
        history = None
        if self.seen is not None:
            history = self.seen.index(interaction[self.uid_field].numpy(), tuple(positive))
        return interaction, history, *positive


def settle_history(
    config: Config, loaders: tuple[AbstractDataLoader, ...]
) -> tuple[AbstractDataLoader, ...]:
    """Apply ``exclude_history`` to the full-ranking loaders among (train, valid, test).

    Without a value RecBole's habit stays: removed for general models, kept for sequential ones.
    """
    exclude = config["exclude_history"]
    if exclude is None:
        return loaders
    parts, settled = [loaders[0]._dataset], [loaders[0]]
    for loader in loaders[1:]:
        if type(loader) is FullSortEvalDataLoader:
            seen = SeenItems(parts) if exclude else None
            loader = FullSortLoader(config, loader._dataset, loader._sampler, seen)
        parts.append(loader._dataset)
        settled.append(loader)
    return tuple(settled)
