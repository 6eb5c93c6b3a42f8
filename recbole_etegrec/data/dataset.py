"""RecBole's sequential dataset, kept as whole sequences.

RecBole turns a user's ``n`` interactions into ``n - 1`` rows, one a prefix. A causal decoder
computes every prefix of a sequence at once, so the training part stays a flat, sorted list of
interactions here; only the held-out rows carry their history as a list, because RecBole's
evaluation loaders want it so. The held-out interactions are those that RecBole's own
leave-one-out picks, which makes results comparable with its other models, or those of the
pre-split files that ``benchmark_filename`` names.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import recbole.data.dataset.dataset as recbole_dataset
import torch
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource

from recbole_etegrec.config import Config
from recbole_etegrec.data.sequences import (
    Windows,
    join_rows,
    pad_runs,
    sequence_offsets,
    whole_sequences,
)
from recbole_etegrec.errors import UserError

logger = logging.getLogger(__name__)

PARTS = ("train", "valid", "test")


def _remove_duplication(self: Dataset) -> None:
    """Keep a user's first or last interaction with each item, as ``rm_dup_inter`` says.

    RecBole's own function sorts by time and leaves ties in any order; this one keeps them in the
    order of the file. RecBole's models use it too.
    """
    keep = self.config["rm_dup_inter"]
    if keep is None:
        return
    self._check_field("uid_field", "iid_field")
    feat = self.inter_feat
    if self.time_field in feat:
        feat = feat.sort_values(self.time_field, kind="stable")
    self.inter_feat = feat.drop_duplicates([self.uid_field, self.iid_field], keep=keep)


Dataset._remove_duplication = _remove_duplication


class WholeSequenceDataset(SequentialDataset):
    """Sequences of item ids, each user's last two interactions held out.

    After :meth:`build`, ``train.inter_feat`` holds the training interactions sorted by user and
    time; ``valid.inter_feat`` and ``test.inter_feat`` hold one row a target: it in ``item_id``,
    its history right-padded in ``item_id_list`` and its length in ``item_length``.

    Attributes:
        offsets: where sequences begin in the interactions of the training part ``[S + 1]``.
        windows: windows of the training part, of any length: which interactions are targets, and
            where their history begins.
        identity: what tells these data from others; set by whoever reads them.
        changed: how they differ from those of the run that is being used, as a sentence.
        further_titles: titles of items that the `.item` file does not have, by token.
    """

    offsets: np.ndarray
    windows: Windows

    def __init__(self, config: Config):
        self.item_id_list_field = config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]
        self.histories: Histories | None = None
        self.identity: Any = None
        self.changed = ""
        self.further_titles: dict[str, str] = {}
        super().__init__(config)

    def _load_feat(self, filepath: str, source: FeatureSource) -> pd.DataFrame | None:
        with _in_recbole(pd=SimpleNamespace(read_csv=_read_csv)):
            return super()._load_feat(filepath, source)

    def _filter_by_inter_num(self) -> None:
        with _in_recbole(Counter=_count):
            super()._filter_by_inter_num()

    def _set_alias(self, alias_name: str, default_value: list[str]) -> None:
        """Let items of pre-split histories share their ids with the targets."""
        presplit = self.benchmark_filename_list is not None
        if alias_name == "item_id" and presplit and self.item_id_list_field in self.field2type:
            default_value = [*default_value, self.item_id_list_field]
        super()._set_alias(alias_name, default_value)

    def _benchmark_presets(self) -> None:
        """Keep the histories of pre-split files, if they have any, outside the table.

        In the table RecBole would pad each to the longest of all.
        """
        table = self.inter_feat
        if self.item_id_list_field in table:
            rows = table[self.item_id_list_field]
            self.histories = Histories(np.concatenate(rows.to_list()), rows.map(len).to_numpy())
        elif self.time_field not in table:
            raise UserError(
                f"benchmark_filename ({', '.join(self.benchmark_filename_list)}): the files have "
                f"neither '{self.item_id_list_field}' (histories) nor '{self.time_field}' "
                "(histories are then made of each user's earlier rows)"
            )
        suffix = self.config["LIST_SUFFIX"]
        made = [self.item_list_length_field, *(f"{field}{suffix}" for field in table)]
        self.inter_feat = table.drop(columns=made, errors="ignore")
        self._aug_presets()

    def data_augmentation(self) -> None:
        """Sort by user and time; the prefix rows of RecBole are not built."""
        self._check_field("uid_field", "time_field")
        self._aug_presets()
        self.sort(by=[self.uid_field, self.time_field], ascending=True)

    def build(self) -> list["WholeSequenceDataset"]:
        """Split into training, validation and test parts.

        Returns:
            The three datasets, as RecBole's ``build`` does.

        Raises:
            UserError: if a part is empty.
        """
        self._change_feat_format()
        if self.histories is not None:
            parts = self._parts_of_rows(self.histories)
        elif self.benchmark_filename_list is not None:
            parts = self._parts_of_sequences(self._sort_files())
        else:
            users = self.inter_feat[self.uid_field].numpy()
            parts = self._parts_of_sequences(leave_one_out(sequence_offsets(users)))
        windows = parts[0].windows
        targets = int((windows.end - windows.supervised_from).sum())
        for name, rows in zip(PARTS, (targets, *map(len, parts[1:])), strict=True):
            if rows == 0:
                raise UserError(self._empty(name))
        return parts

    def _sort_files(self) -> np.ndarray:
        """Sort pre-split files by user and time; returns the number of each interaction's part."""
        part = np.repeat(np.arange(len(PARTS)), self.file_size_list)
        self.inter_feat["part"] = torch.from_numpy(part)
        self.sort(by=[self.uid_field, self.time_field], ascending=True)
        part = self.inter_feat["part"].numpy()
        self.inter_feat.drop("part")
        return part

    def _parts_of_sequences(self, part: np.ndarray) -> list["WholeSequenceDataset"]:
        """Split the sorted interactions by the number of each one's part.

        The history of a held-out item is what precedes it in its own and earlier parts.
        """
        self._drop_unused_col()
        users, items = self._column(self.uid_field), self._column(self.iid_field)
        rows = np.flatnonzero(part == 0)
        offsets = sequence_offsets(users[rows])
        train = self.copy(select_rows(self.inter_feat, rows))
        train.offsets, train.windows = offsets, whole_sequences(offsets)
        parts = [train]
        for number, name in enumerate(PARTS[1:], start=1):
            known = np.flatnonzero(part <= number)
            offsets = sequence_offsets(users[known])
            targets = np.flatnonzero(part[known] == number)
            starts = offsets[np.searchsorted(offsets, targets, side="right") - 1]
            feat = select_rows(self.inter_feat, known[targets])
            parts.append(self._held_out(name, feat, items[known], targets, targets - starts))
        return parts

    def _parts_of_rows(self, histories: "Histories") -> list["WholeSequenceDataset"]:
        """Split pre-split files in which each row has its history."""
        self._drop_unused_col()
        users, targets = self._column(self.uid_field), self._column(self.iid_field)
        items, lengths = histories
        ends = np.cumsum(lengths)
        first, *held_out = np.split(np.arange(len(users)), np.cumsum(self.file_size_list)[:-1])
        joined = join_rows(users[first], items, ends[first], lengths[first], targets[first])
        columns = {self.uid_field: users[first][joined.row], self.iid_field: joined.items}
        train = self.copy(Interaction({k: torch.from_numpy(v) for k, v in columns.items()}))
        train.offsets, train.windows = joined.offsets, joined.windows
        return [train] + [
            self._held_out(
                name, select_rows(self.inter_feat, rows), items, ends[rows], lengths[rows]
            )
            for name, rows in zip(PARTS[1:], held_out, strict=True)
        ]

    def _column(self, field: str) -> np.ndarray:
        return self.inter_feat[field].numpy()

    def _held_out(
        self, name: str, feat: Interaction, items: np.ndarray, ends: np.ndarray, lengths: np.ndarray
    ) -> "WholeSequenceDataset":
        """Make a part of rows with the items before ``ends`` as histories, the shortest first.

        The order by length lets evaluation batches carry almost no padding.
        """
        lengths = np.minimum(lengths, self.max_item_list_len)
        order = np.argsort(lengths, kind="stable")
        missing = int((lengths == 0).sum())
        if missing:
            logger.warning(
                "%s part: %d of %d rows have no history and are left out", name, missing, len(order)
            )
        order = order[missing:]
        ends, lengths = ends[order], lengths[order]
        history = pad_runs(items, ends, lengths, self.max_item_list_len)  # [rows, T]
        feat = select_rows(feat, order)
        feat[self.item_id_list_field] = torch.from_numpy(history)
        feat[self.item_list_length_field] = torch.from_numpy(lengths)
        return self.copy(feat)

    def _empty(self, name: str) -> str:
        if self.benchmark_filename_list is not None:
            file = self.benchmark_filename_list[PARTS.index(name)]
            return f"benchmark_filename: {self.dataset_name}.{file}.inter has no row with a history"
        lengths = np.diff(sequence_offsets(self._column(self.uid_field)))
        return (
            f"eval_args.split: the {name} part of {self.dataset_name} is empty "
            f"({len(lengths)} users, longest sequence {lengths.max(initial=0)}): "
            "a user needs 4 interactions to have a validation and a test item."
        )


class Histories(NamedTuple):
    """Histories of rows: all their items, row after row, and the length of each ``[rows]``."""

    items: np.ndarray
    lengths: np.ndarray


def leave_one_out(offsets: np.ndarray) -> np.ndarray:
    """Number the part of each interaction of sorted sequences: 0 train, 1 valid, 2 test.

    RecBole counts rows (one less than interactions) and always keeps one for training.
    """
    held_out = np.clip(np.diff(offsets) - 2, 0, 2)
    last = offsets[1:] - 1
    part = np.zeros(offsets[-1], dtype=np.int8)
    part[last[held_out >= 1]] = 2
    part[last[held_out >= 2] - 1] = 1
    return part


def select_rows(feat: Interaction, rows: np.ndarray) -> Interaction:
    """Return ``feat[rows]`` faster than RecBole, which makes a Python list of the index."""
    index = torch.from_numpy(rows)
    return Interaction({name: column[index] for name, column in feat.interaction.items()})


@contextmanager
def _in_recbole(**faster: Any) -> Iterator[None]:
    """Replace functions of RecBole's dataset module by faster ones that return the same."""
    own = {name: getattr(recbole_dataset, name) for name in faster}
    vars(recbole_dataset).update(faster)
    try:
        yield
    finally:
        vars(recbole_dataset).update(own)


def _read_csv(*args: Any, **options: Any) -> pd.DataFrame:
    """Read a table with pandas' parser in C, to the same decimals as its parser in Python."""
    if len(options["delimiter"]) == 1:  # the parser in C knows no other
        options |= {"engine": "c", "float_precision": "high"}
    return pd.read_csv(*args, **options)


def _count(values: np.ndarray | None = None) -> Counter:
    """Count how often each value occurs."""
    if values is None:
        return Counter()
    codes, distinct = pd.factorize(values)
    return Counter(dict(zip(distinct, np.bincount(codes).tolist(), strict=True)))
