"""Keeps the items of a user's history in the ranking or out of it, alike for every model.

RecBole removes them for general models and keeps them for sequential ones, which makes the two
hard to compare; the key ``exclude_history`` settles it for both.
"""

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset

from recbole_etegrec.config import Config
from recbole_etegrec.data.sequences import Sequences, place_in_run, run_indices

# Rows of a batch, and for each an item of its user's history.
HistoryIndex = tuple[torch.Tensor, torch.Tensor]


class SeenItems:
    """The distinct items of each user in some parts of a dataset.

    Args:
        parts: parts of one split; rows may carry histories, as in sequential datasets.
        ranked: the part that is ranked for, if its histories count for all of a user's rows.
    """

    def __init__(self, parts: list[Dataset], ranked: Dataset | None = None):
        self.n_items = parts[0].item_num
        keys = [key for part in parts for key in self._keys(part)]
        keys += self._keys(ranked)[1:] if ranked else []
        keys = np.unique(np.concatenate(keys))
        users, self.items = np.divmod(keys, self.n_items)
        self.offsets = np.searchsorted(users, np.arange(parts[0].user_num + 1))

    def _keys(self, part: Dataset) -> list[np.ndarray]:
        """Numbers of user and item: of the rows, then of their histories."""
        feat = part.inter_feat
        users = feat[part.uid_field].numpy()
        keys = [users * self.n_items + feat[part.iid_field].numpy()]
        field = getattr(part, "item_id_list_field", None)
        if field in feat:
            rows, columns = np.nonzero(feat[field].numpy())
            keys.append(users[rows] * self.n_items + feat[field].numpy()[rows, columns])
        return keys

    def _of(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of row and distinct item of some users, by row and item."""
        counts = np.diff(self.offsets)[users]
        rows = np.repeat(np.arange(len(users)), counts)
        return rows, self.items[self.offsets[users][rows] + place_in_run(counts)]

    def told(self) -> list[np.ndarray]:
        """What tells these from others."""
        return [self.offsets, self.items]

    def index(
        self, users: np.ndarray, positive: HistoryIndex, own: np.ndarray | None = None
    ) -> HistoryIndex:
        """Pairs of row and seen item for a batch, its positive items left out.

        Args:
            users: of the rows ``[B]``.
            own: the histories of the rows, where they carry them ``[B, T]``, padded with 0;
                pre-split rows may know of items that no earlier part has.
        """
        rows, items = self._of(users)
        keys = rows * self.n_items + items
        if own is not None:
            row, place = np.nonzero(own)
            keys = np.union1d(keys, row * self.n_items + own[row, place])
        wanted = positive[0].numpy() * self.n_items + positive[1].numpy()
        rows, items = np.divmod(keys[~np.isin(keys, wanted)], self.n_items)
        return torch.from_numpy(rows), torch.from_numpy(items)


class SeenRuns(SeenItems):
    """The same, looked up in a user's sequence when a batch asks for it; nothing is kept.

    Args:
        known: of each user, from 1 on, the interactions that some parts have.
        n_items: ids there are.
    """

    def __init__(self, known: Sequences, n_items: int):
        self.known, self.n_items = known, n_items

    def _of(self, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lengths = self.known.lengths[users - 1]
        items = self.known.items[run_indices(self.known.end[users - 1], lengths)]
        keys = np.repeat(np.arange(len(users)), lengths) * self.n_items + items
        return np.divmod(np.unique(keys), self.n_items)

    def told(self) -> list[np.ndarray]:
        """See `SeenItems`."""
        return [self.known.end, self.known.items]


class FullSortLoader(FullSortEvalDataLoader):
    """RecBole's loader, which also says which items of the history are not ranked.

    Args:
        seen: the items that are not ranked; None if all are.
    """

    def __init__(self, config: Config, dataset: Dataset, sampler, seen: SeenItems | None):
        super().__init__(config, dataset, sampler)
        self.seen = seen

    def collate_fn(self, index) -> tuple:
        """RecBole's batch ``(interaction, history_index, positive_u, positive_i)``."""
        interaction, _, *positive = super().collate_fn(index)
        history = None
        if self.seen is not None:
            field = getattr(self._dataset, "item_id_list_field", None)
            own = interaction[field].numpy() if field in interaction else None
            users = interaction[self.uid_field].numpy()
            history = self.seen.index(users, tuple(positive), own)
        return interaction, history, *positive


def seen_items(parts: list[Dataset], ranked: Dataset | None = None) -> SeenItems:
    """What users have seen in some parts of a split, see `SeenItems`."""
    known = getattr(parts[-1], "known", None)
    return SeenItems(parts, ranked) if known is None else SeenRuns(known, parts[0].item_num)


def settle_history(
    config: Config, loaders: tuple[AbstractDataLoader, ...]
) -> tuple[AbstractDataLoader, ...]:
    """Apply ``exclude_history`` to the full-ranking loaders among (train, valid, test).

    Without a value RecBole's rule holds: general models remove histories, sequential ones do not.
    """
    exclude = config["exclude_history"]
    if exclude is None:
        return loaders
    parts, settled = [loaders[0]._dataset], [loaders[0]]
    for loader in loaders[1:]:
        if type(loader) is FullSortEvalDataLoader:
            # General models rank once for a user, and have no histories in their batches.
            ranked = None if loader.is_sequential else loader._dataset
            seen = seen_items(parts, ranked) if exclude else None
            loader = FullSortLoader(config, loader._dataset, loader._sampler, seen)
        parts.append(loader._dataset)
        settled.append(loader)
    return tuple(settled)
