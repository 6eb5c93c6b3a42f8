"""Histories to recommend after: given ones, whole ones of a dataset's users, those of a split.

They are kept as item ids; a batch is made when it is asked for.
"""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.interaction import Interaction

from recbole_etegrec.data import WholeSequenceDataset
from recbole_etegrec.data.seen_items import FullSortLoader, HistoryIndex, seen_items
from recbole_etegrec.data.sequences import pad_runs, run_indices, sequence_offsets
from recbole_etegrec.data.tokens import Tokens
from recbole_etegrec.model.protocol import RankingModel

SPLITS = ("valid", "test")
_ROWS = 2**17  # histories that are copied at once


class Histories(Protocol):
    """Rows with a history each.

    Attributes:
        lengths: how many items of each history the model sees ``[rows]``.
    """

    lengths: np.ndarray

    def batch(self, rows: np.ndarray) -> tuple[Interaction, HistoryIndex | None]:
        """Some rows as the model's ranker wants them, and what it is not to rank."""

    def digest(self, rows: np.ndarray) -> str:
        """What tells some rows, and what is not ranked after them, from others."""


class Runs:
    """Histories that are runs of one array of items; of a long one the model sees the end.

    Args:
        ends: where in the array each history ends ``[rows]``.
        lengths: how many items each has, at least 1 ``[rows]``.
        exclude: whether all items of a history are kept out of its ranking.
    """

    def __init__(
        self,
        model: RankingModel,
        items: np.ndarray,
        ends: np.ndarray,
        lengths: np.ndarray,
        exclude: bool,
    ):
        self._fields = model.fields.history, model.fields.length
        self._items, self._ends, self._whole, self._exclude = items, ends, lengths, exclude
        self.lengths = np.minimum(lengths, model.max_history)

    def batch(self, rows: np.ndarray) -> tuple[Interaction, HistoryIndex | None]:
        """See :class:`Histories`."""
        lengths = self.lengths[rows]
        history = pad_runs(self._items, self._ends[rows], lengths, lengths.max())
        values = torch.from_numpy(history), torch.from_numpy(lengths)
        interaction = Interaction(dict(zip(self._fields, values, strict=True)))
        return interaction, self._excluded(rows) if self._exclude else None

    def digest(self, rows: np.ndarray) -> str:
        """See :class:`Histories`."""
        parts = np.array_split(rows, -(-len(rows) // _ROWS) or 1)
        items = (self._items[run_indices(self._ends[p], self._whole[p])] for p in parts)
        return _digest([self._whole[rows]], (run.astype(np.int64) for run in items))

    def _excluded(self, rows: np.ndarray) -> HistoryIndex:
        whole = self._whole[rows]
        items = self._items[run_indices(self._ends[rows], whole)]
        pairs = np.stack([np.repeat(np.arange(len(rows)), whole), items])
        row, item = torch.from_numpy(np.unique(pairs, axis=1))
        return row, item


class SplitRows:
    """The rows of a held-out part, as the evaluator ranks them.

    Args:
        loader: RecBole's evaluation loader of the part.
    """

    def __init__(self, loader: FullSortLoader):
        part = loader._dataset
        self._loader, self._part = loader, part
        self.lengths = part.inter_feat[part.item_list_length_field].numpy()

    def batch(self, rows: np.ndarray) -> tuple[Interaction, HistoryIndex | None]:
        """See :class:`Histories`."""
        return self._loader.collate_fn(rows)[:2]

    def digest(self, rows: np.ndarray) -> str:
        """See :class:`Histories`."""
        part, seen = self._part, self._loader.seen
        columns = (part.uid_field, part.iid_field, part.item_id_list_field)
        told = [part.inter_feat[column].numpy()[rows] for column in columns]
        return _digest(told, [] if seen is None else seen.told())


def _digest(*lists: Iterable[np.ndarray]) -> str:
    """A digest of arrays, of which one at a time is in memory."""
    digest = hashlib.sha256()
    for array in chain(*lists):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


class UserHistories(NamedTuple):
    """Histories of users of a dataset, and the user's token of each ``[rows]``."""

    users: np.ndarray | Tokens
    histories: Histories


def given_histories(model: RankingModel, histories: Sequence[Sequence[int]], exclude: bool) -> Runs:
    """Histories of item ids, none of them empty."""
    lengths = np.array([len(history) for history in histories])
    items = np.concatenate([np.asarray(history, dtype=np.int64) for history in histories])
    return Runs(model, items, lengths.cumsum(), lengths, exclude)


def whole_histories(
    model: RankingModel, dataset: WholeSequenceDataset, exclude: bool
) -> UserHistories:
    """Make the whole history of each user of a dataset, after its ``build``."""
    if dataset.histories is None:
        items, start, ends, users = dataset.sequences
        lengths = ends - start
    else:
        feat = dataset.inter_feat
        users, items = feat[dataset.uid_field].numpy(), feat[dataset.iid_field].numpy()
        users, items, ends, lengths = _last_rows(dataset, users, items)
    tokens = tokens_of(dataset, users)
    return UserHistories(tokens, Runs(model, items, ends, lengths, exclude))


def _last_rows(
    dataset: WholeSequenceDataset, users: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Users, items, ends and lengths: each user's last row, its history with its target.

    A user's last row is the one with the longest history in the last part that has the user.
    """
    items, lengths = dataset.histories
    part = np.repeat(np.arange(len(dataset.file_size_list)), dataset.file_size_list)
    order = np.lexsort((lengths, part, users))
    rows = order[sequence_offsets(users[order])[1:] - 1]
    lengths = lengths[rows]
    ends = np.cumsum(lengths + 1)
    joined = np.empty(ends[-1], dtype=np.int64)
    joined[ends - 1] = targets[rows]
    joined[run_indices(ends - 1, lengths)] = items[
        run_indices(dataset.histories.lengths.cumsum()[rows], lengths)
    ]
    return users[rows], joined, ends, lengths + 1


def split_histories(
    loaders: Sequence[AbstractDataLoader], split: str, exclude: bool
) -> UserHistories:
    """The histories before the held-out items of a split, as the evaluator ranks after them.

    Args:
        loaders: (train, valid, test).
        split: one of `SPLITS`.
    """
    number = 1 + SPLITS.index(split)
    parts = [loader._dataset for loader in loaders]
    seen = seen_items(parts[:number]) if exclude else None
    part = parts[number]
    loader = FullSortLoader(part.config, part, loaders[number]._sampler, seen)
    users = tokens_of(part, part.inter_feat[part.uid_field].numpy())
    return UserHistories(users, SplitRows(loader))


def tokens_of(dataset: WholeSequenceDataset, users: np.ndarray) -> np.ndarray | Tokens:
    """Tokens of users, which stay where they are if they lie in a file."""
    tokens = dataset.field2id_token[dataset.uid_field]
    return tokens.of(users) if isinstance(tokens, Tokens) else tokens[users]
