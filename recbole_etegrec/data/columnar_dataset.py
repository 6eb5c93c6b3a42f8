"""A dataset of which the interactions are binary columns: its parts are views, made batch by batch.

It has the ids, the split and the batches that `WholeSequenceDataset` makes of the same text.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction
from recbole.utils import FeatureSource, FeatureType

from recbole_etegrec.config import Config
from recbole_etegrec.data.columns import Columns
from recbole_etegrec.data.dataset import WholeSequenceDataset
from recbole_etegrec.data.identity import ids_to_keep
from recbole_etegrec.data.sequences import Sequences, Windows, pad_runs
from recbole_etegrec.data.tokens import TokenIds, Tokens

logger = logging.getLogger(__name__)


class Rows(Interaction):
    """RecBole's table, of columns that are made for the rows that are asked for.

    Args:
        columns: by field, what makes the values of some rows ``[n]``.
        length: rows there are.
    """

    def __init__(self, columns: Mapping[str, Callable[[np.ndarray], np.ndarray]], length: int):
        self._columns, self.length = dict(columns), length

    @property
    def interaction(self) -> dict[str, torch.Tensor]:
        """All of it, as RecBole keeps it."""
        return {name: self[name] for name in self._columns}

    @property
    def columns(self) -> list[str]:
        """The names of the columns."""
        return list(self._columns)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __getitem__(self, index: Any) -> torch.Tensor | Interaction:
        """A column, or some rows."""
        if isinstance(index, str):
            return torch.from_numpy(self._columns[index](np.arange(self.length)))
        rows = np.arange(self.length)[index] if isinstance(index, slice) else np.asarray(index)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        made = {name: make(rows) for name, make in self._columns.items()}
        return Interaction({name: torch.from_numpy(values) for name, values in made.items()})


class ColumnarDataset(WholeSequenceDataset):
    """See the module.

    Attributes:
        known: of a part, what users have done in it and in the parts before it.
        digests: of the interactions and the users, as `Identity` has them.
    """

    known: Sequences | None = None

    def __init__(self, config: Config, columns: Columns):
        self.stored = columns
        self.digests = columns.note["interactions"], columns.note["users"]
        for warning in columns.note["warnings"]:
            logger.warning("%s", warning)
        super().__init__(config)

    def _load_data(self, token: str, dataset_path: str) -> None:
        fields = self.uid_field, self.iid_field, self.time_field
        for field, kind in zip(fields, ("TOKEN", "TOKEN", "FLOAT"), strict=True):
            self.set_field_property(field, FeatureType[kind], FeatureSource.INTERACTION, 1)
        tokens = dict(zip(fields, (self.stored.users, self.stored.item_tokens), strict=False))
        self.field2id_token = tokens
        self.field2token_id = {field: TokenIds(found) for field, found in tokens.items()}
        self.sequences = self.stored.sequences
        places = len(self.stored.items)
        self.inter_feat = self._rows_at(lambda rows: rows, places, self._user_at)
        self.user_feat = self.item_feat = None

    def _data_processing(self) -> None:
        """Nothing is left to do, but for what RecBole reads later."""
        self.feat_name_list = ["inter_feat"]

    def _split(self) -> list["ColumnarDataset"]:
        self._aug_presets()
        items, start, end, users = self.sequences
        held_out = np.clip(end - start - 2, 0, 2)  # as `leave_one_out` has it
        train_end = end - held_out
        train = self._part(self.sequences._replace(end=train_end))
        train.sequences = train.known
        train.windows = Windows(start, train_end, start + 1)
        train.inter_feat = self._train_rows(train.sequences)
        parts = [train]
        for has, place, known in (
            (held_out == 2, train_end, end - (held_out > 0)),
            (held_out >= 1, end - 1, end),
        ):
            part = self._part(self.sequences._replace(end=known))
            targets, begin = place[has], start[has]
            part.inter_feat = self._held_out_rows(users[has], targets, targets - begin)
            parts.append(part)
        return parts

    def _part(self, known: Sequences) -> "ColumnarDataset":
        part = self.copy(self.inter_feat)
        part.known = known
        return part

    # Rows -----------------------------------------------------------------------------------------

    def _user_at(self, places: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.stored.offsets, places, side="right")

    def _rows_at(
        self,
        place_of: Callable[[np.ndarray], np.ndarray],
        length: int,
        user_of: Callable[[np.ndarray], np.ndarray],
        **more: Callable[[np.ndarray], np.ndarray],
    ) -> Rows:
        """Interactions by their places among all."""
        stored = self.stored
        columns = {
            self.uid_field: user_of,
            self.iid_field: lambda rows: stored.items[place_of(rows)].astype(np.int64),
            self.time_field: lambda rows: (
                stored.times[place_of(rows)].astype(np.float64).astype(np.float32)
            ),
        }
        return Rows({**columns, **more}, length)

    def _train_rows(self, train: Sequences) -> Rows:
        offsets = train.offsets

        def place_of(rows: np.ndarray) -> np.ndarray:
            sequence = np.searchsorted(offsets, rows, side="right") - 1
            return train.start[sequence] + rows - offsets[sequence]

        return self._rows_at(
            place_of, int(offsets[-1]), lambda rows: np.searchsorted(offsets, rows, side="right")
        )

    def _held_out_rows(self, users: np.ndarray, places: np.ndarray, lengths: np.ndarray) -> Rows:
        """Targets with the items before them as histories, the shortest first."""
        width = self.max_item_list_len
        lengths = np.minimum(lengths, width)
        order = np.argsort(lengths, kind="stable")
        users, places, lengths = users[order], places[order], lengths[order]
        more = {
            self.item_id_list_field: lambda rows: pad_runs(
                self.stored.items, places[rows], lengths[rows], width
            ),
            self.item_list_length_field: lambda rows: lengths[rows],
        }
        return self._rows_at(
            lambda rows: places[rows], len(users), lambda rows: users[rows], **more
        )

    # What RecBole says of a dataset -------------------------------------------------------------

    @property
    def avg_actions_of_users(self) -> float:
        """See RecBole."""
        return self.inter_num / (self.user_num - 1)

    @property
    def avg_actions_of_items(self) -> float:
        """See RecBole."""
        return self.inter_num / (self.item_num - 1)


def numbered_as_known(columns: Columns, field: str) -> Columns | None:
    """Columns in which items have the ids that `known_ids` asks for; None where they have others.

    Args:
        field: of items.
    """
    known = ids_to_keep()
    if known is None:
        return columns
    tokens, changes = known
    if set(tokens) != {field}:
        return None
    own, wanted = columns.item_tokens, tokens[field]
    same = len(wanted) >= len(own) and all(
        token == other for token, other in zip(own, wanted, strict=False)
    )
    if not same:
        logger.warning("items have other ids than in the binary columns: the text is read")
        return None
    changes.gone[field], changes.new[field] = np.arange(len(own), len(wanted)), 0
    if len(wanted) > len(own):  # items that were added to the run, and come last
        import pyarrow as pa

        own = Tokens(pa.array(wanted, pa.large_string()))
    return columns._replace(item_tokens=own)
