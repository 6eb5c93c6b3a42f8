"""RecBole's sequential dataset, kept as whole sequences.

RecBole turns a user's ``n`` interactions into ``n - 1`` rows, one a prefix. A causal decoder
computes every prefix of a sequence at once, so the training part stays a flat, sorted list of
interactions here; only the held-out rows carry their history as a list, because RecBole's
evaluation loaders want it so. The held-out interactions are those that RecBole's own
leave-one-out picks, which makes results comparable with its other models, or those of the
pre-split files that ``benchmark_filename`` names.
"""

import logging
from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction
from recbole.utils import ModelType

from recbole_etegrec.config import Config
from recbole_etegrec.data.checked_dataset import CheckedDataset
from recbole_etegrec.data.sequences import (
    Sequences,
    Windows,
    join_rows,
    pad_runs,
    sequence_offsets,
    whole_sequences,
)
from recbole_etegrec.errors import UserError

logger = logging.getLogger(__name__)

PARTS = ("train", "valid", "test")


class WholeSequenceDataset(CheckedDataset, SequentialDataset):
    """Sequences of item ids, each user's last two interactions held out.

    After :meth:`build`, ``train.inter_feat`` holds the training interactions sorted by user and
    time; ``valid.inter_feat`` and ``test.inter_feat`` hold one row a target: it in ``item_id``,
    its history right-padded in ``item_id_list`` and its length in ``item_length``.

    Attributes:
        sequences: of the training part, or of the whole dataset where that has been split.
        windows: windows of the training part, of any length: which items of its sequences are
            targets, and where their history begins.
        identity: what tells these data from others; set by whoever reads them.
        changed: how they differ from those of the run that is being used, as a sentence.
        further_titles: titles of items that the `.item` file does not have, by token.
    """

    sequences: Sequences
    windows: Windows

    def __init__(self, config: Config):
        self.item_id_list_field = config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]
        self.histories: Histories | None = None
        self.identity: Any = None
        self.changed = ""
        self.further_titles: dict[str, str] = {}
        super().__init__(config)

    @property
    def offsets(self) -> np.ndarray:
        """Where the sequences begin among the interactions of a part ``[S + 1]``."""
        return self.sequences.offsets

    def _set_alias(self, alias_name: str, default_value: list[str]) -> None:
        """Let items of pre-split histories share their ids with the targets."""
        presplit = self.benchmark_filename_list is not None
        if alias_name == "item_id" and presplit and self.item_id_list_field in self.field2type:
            default_value = [*default_value, self.item_id_list_field]
        super()._set_alias(alias_name, default_value)

    def _normalize(self) -> None:
        """Normalise as RecBole does, but leave ratings what users gave: they are compared."""
        rating = self.config["RATING_FIELD"]
        given = self.inter_feat.get(rating)
        super()._normalize()
        if given is not None:
            self.inter_feat[rating] = given

    def _benchmark_presets(self) -> None:
        """Keep the histories of pre-split files, if they have any, outside the table.

        In the table RecBole would pad each to the longest of all.
        """
        table = self.inter_feat
        if self.item_id_list_field in table:
            rows = table[self.item_id_list_field]
            self.histories = Histories(np.concatenate(rows.to_list()), rows.map(len).to_numpy())
        elif self.time_field not in table and self.config["MODEL_TYPE"] == ModelType.SEQUENTIAL:
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
        parts = self._split()
        windows = parts[0].windows
        targets = int((windows.end - windows.supervised_from).sum())
        for name, rows in zip(PARTS, (targets, *map(len, parts[1:])), strict=True):
            if rows == 0:
                raise UserError(self._empty(name))
        return parts

    def _split(self) -> list["WholeSequenceDataset"]:
        files = self._sort_files() if self.histories is None else None
        self._change_feat_format()
        if self.histories is not None:
            return self._parts_of_rows(self.histories)
        users = self._column(self.uid_field)
        offsets = sequence_offsets(users)
        self.sequences = self._sequences(self._column(self.iid_field), offsets, users)
        return self._parts_of_sequences(leave_one_out(offsets) if files is None else files)

    def _sequences(self, items: np.ndarray, offsets: np.ndarray, users: np.ndarray) -> Sequences:
        return Sequences(items, offsets[:-1], offsets[1:], users[offsets[:-1]])

    def _sort_files(self) -> np.ndarray | None:
        """Sort pre-split files by user and time, before times are rounded.

        Returns:
            The number of each interaction's part; None where the dataset is in one file.
        """
        if self.benchmark_filename_list is None:
            return None
        table = self.inter_feat
        part = np.repeat(np.arange(len(PARTS)), self.file_size_list)
        times = table.get(self.time_field, part)
        order = np.lexsort((times, table[self.uid_field]))  # stable: ties as in the files
        self.inter_feat = table.iloc[order].reset_index(drop=True)
        return part[order]

    def _parts_of_sequences(self, part: np.ndarray) -> list["WholeSequenceDataset"]:
        """Split the sorted interactions by the number of each one's part.

        The history of a held-out item is what precedes it in its own and earlier parts.
        """
        self._drop_unused_col()
        users, items = self._column(self.uid_field), self._column(self.iid_field)
        rows = np.flatnonzero(part == 0)
        train = self.copy(select_rows(self.inter_feat, rows))
        users_of_train = users[rows]
        offsets = sequence_offsets(users_of_train)
        train.sequences = self._sequences(items[rows], offsets, users_of_train)
        train.windows = whole_sequences(offsets)
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
        train.sequences = self._sequences(joined.items, joined.offsets, columns[self.uid_field])
        train.windows = joined.windows
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
