"""The ends of training histories: what comes next is not known there, but a teacher has a guess."""

import numpy as np

from recbole_etegrec.data.sequences import Sequences, Windows
from recbole_etegrec.data.teacher import Teacher


def with_ends(sequences: Sequences, windows: Windows) -> tuple[np.ndarray, Windows, np.ndarray]:
    """One more place behind each sequence, as the last target of the window that ends with it.

    Args:
        windows: of the sequences; of those that end with one, the last is taken.

    Returns:
        Items ``[I + S]``, 0 at the new places; windows of them; and the places ``[S]``.
    """
    lengths, first = sequences.lengths, sequences.offsets[:-1] + np.arange(len(sequences.start))
    places = first + lengths
    known = np.concatenate([block.items for block in sequences.blocks()])
    items = np.insert(known, sequences.offsets[1:], 0)
    sequence = np.searchsorted(sequences.start, windows.start, side="right") - 1
    start, end, supervised_from = (
        at - sequences.start[sequence] + first[sequence] for at in windows
    )
    last = np.full(len(lengths), -1)
    ends = np.flatnonzero((windows.end == sequences.end[sequence]) & (lengths[sequence] > 0))
    last[sequence[ends]] = ends  # of several the last is written last
    end[last[last >= 0]] += 1
    return items, Windows(start, end, supervised_from), places[last >= 0]


def draw_ends(teacher: Teacher, places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An item for each place ``[P]``, drawn as probable as a teacher says (by Gumbel's maximum)."""
    found = teacher(places)
    keys = found.scores + rng.gumbel(size=found.scores.shape)
    return found.items[np.arange(len(places)), keys.argmax(axis=1)]
