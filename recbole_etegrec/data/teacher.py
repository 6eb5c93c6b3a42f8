"""A teacher's candidates and scores of training targets, on disk; a step reads its own rows."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from recbole_etegrec.errors import UserError

_ITEMS, _SCORES = "items.npy", "scores.npy"


class Taught(NamedTuple):
    """What a teacher says of some targets.

    Attributes:
        items: its candidates, best first; 0 where there are no more ``[n, K]``.
        scores: log-probabilities of these, -inf there ``[n, K]``.
    """

    items: np.ndarray
    scores: np.ndarray


class Teacher:
    """Says what it knows of targets, given by their places among all items of the training part.

    Args:
        folder: holds ``items.npy`` and ``scores.npy``, a row a target.
        places: of the targets of these rows, ascending ``[P]``.

    Raises:
        UserError: the files are damaged.
    """

    def __init__(self, folder: Path, places: np.ndarray):
        self.places = places
        try:
            self.items = np.load(folder / _ITEMS, mmap_mode="r", allow_pickle=False)
            self.scores = np.load(folder / _SCORES, mmap_mode="r", allow_pickle=False)
            if not len(self.items) == len(self.scores) == len(places):
                raise ValueError(f"{len(self.items)} rows for {len(places)} targets")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{folder}: damaged ({error}): delete it") from error

    def __call__(self, places: np.ndarray) -> Taught:
        """What it says of the targets at some places ``[n]``."""
        rows = np.searchsorted(self.places, places)
        return Taught(self.items[rows].astype(np.int64), self.scores[rows])


def new_tables(folder: Path, rows: int, candidates: int) -> Taught:
    """Make the files of a teacher, to be filled row by row."""
    return Taught(
        np.lib.format.open_memmap(folder / _ITEMS, "w+", np.int32, (rows, candidates)),
        np.lib.format.open_memmap(folder / _SCORES, "w+", np.float32, (rows, candidates)),
    )
