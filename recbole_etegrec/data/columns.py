"""The form of the interactions of a large dataset as binary columns, memory-mapped.

Three arrow files of one record batch each: the interactions, filtered, by user and then by time;
the users, with where their interactions end; and the items. A note says what they were made of.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recbole_etegrec.data.sequences import Sequences
from recbole_etegrec.data.tokens import Tokens

INTERACTIONS, USERS, ITEMS, NOTE = "interactions.arrow", "users.arrow", "items.arrow", "note.json"
VERSION = 1  # of the form; raise it when the same text gives other files
# Keys that choose which interactions there are.
FILTERS = ("rm_dup_inter", "user_inter_num_interval", "item_inter_num_interval")


class Columns(NamedTuple):
    """The interactions of a dataset, filtered, by user and then by time.

    Attributes:
        items: ids ``[I]``.
        times: whole numbers ``[I]``.
        offsets: where each user's interactions begin ``[U + 1]``; user ``u`` is at ``u - 1``.
        users: tokens of users ``[U + 1]``, the padding first.
        item_tokens: tokens of items ``[N]``, the padding first.
        note: digests of their identity, and what the filters have left out.
    """

    items: np.ndarray
    times: np.ndarray
    offsets: np.ndarray
    users: Tokens
    item_tokens: Tokens
    note: dict[str, Any]

    @property
    def sequences(self) -> Sequences:
        """All interactions of each user."""
        users = np.arange(1, len(self.offsets))
        return Sequences(self.items, self.offsets[:-1], self.offsets[1:], users)


def read_columns(folder: Path) -> Columns:
    """Map the files of a folder into memory."""
    note = json.loads((folder / NOTE).read_text("utf-8"))
    interactions, users, items = (
        _mapped(folder / "data" / name) for name in (INTERACTIONS, USERS, ITEMS)
    )
    return Columns(
        interactions.column("item").to_numpy(),
        interactions.column("time").to_numpy(),
        users.column("end").to_numpy(),
        Tokens(users.column("token")),
        Tokens(items.column("token")),
        note,
    )


def _mapped(path: Path):
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
