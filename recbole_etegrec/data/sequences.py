"""Sequences of items as flat arrays; users, tokens and files are unknown here.

A sequence is given by where it begins and ends in one array of all items, so that no Python object
is built for a sequence, an item or a prefix.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_BLOCK = 2**22  # items of sequences that are copied at once


class Sequences(NamedTuple):
    """Sequences as runs of one flat array, in which there may be other items between them.

    Attributes:
        items: ids ``[I]``; it may lie in a file.
        start: where each begins ``[S]``, ascending.
        end: where each ends ``[S]``.
        users: whose each is ``[S]``.
    """

    items: np.ndarray
    start: np.ndarray
    end: np.ndarray
    users: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Items of each ``[S]``."""
        return self.end - self.start

    @property
    def offsets(self) -> np.ndarray:
        """Where each begins when they stand one after the other ``[S + 1]``."""
        return np.append(0, np.cumsum(self.lengths))

    def blocks(self, most: int = _BLOCK) -> Iterator["Sequences"]:
        """The same sequences in their order, some of them at a time, with a copy of their items.

        Args:
            most: items of a block, unless it is one sequence.
        """
        offsets, begin = self.offsets, 0
        while begin < len(self.start):
            end = int(np.searchsorted(offsets, offsets[begin] + most, side="right")) - 1
            end = max(end, begin + 1)
            own, lengths = slice(begin, end), self.lengths[begin:end]
            items = self.items[run_indices(self.end[own], lengths)].astype(np.int64)
            ends = np.cumsum(lengths)
            yield Sequences(items, ends - lengths, ends, self.users[own])
            begin = end

    def counts(self, n_items: int) -> np.ndarray:
        """How often each item is in them ``[n_items]``."""
        counts = np.zeros(n_items, dtype=np.int64)
        for block in self.blocks():
            counts += np.bincount(block.items, minlength=n_items)
        return counts


class Windows(NamedTuple):
    """Pieces of the flat list of items; those from ``supervised_from`` on are targets."""

    start: np.ndarray
    end: np.ndarray
    supervised_from: np.ndarray


class JoinedRows(NamedTuple):
    """Sequences that were joined from rows, each a history and a target.

    Attributes:
        items: flat item ids ``[I]``.
        offsets: where sequences begin in them ``[S + 1]``.
        windows: each target once, with the history that its row gives.
        row: for each item, a row of the sequence it belongs to ``[I]``.
    """

    items: np.ndarray
    offsets: np.ndarray
    windows: Windows
    row: np.ndarray


def sequence_offsets(users: np.ndarray) -> np.ndarray:
    """Where each user's interactions begin in an array sorted by user.

    Args:
        users: user ids ``[interactions]``, equal ids adjacent.

    Returns:
        ``[sequences + 1]``; sequence ``s`` is ``offsets[s]:offsets[s + 1]``.
    """
    if len(users) == 0:
        return np.zeros(1, dtype=np.int64)
    changes = np.flatnonzero(users[1:] != users[:-1]) + 1
    return np.concatenate([[0], changes, [len(users)]]).astype(np.int64)


def place_in_run(counts: np.ndarray) -> np.ndarray:
    """Count 0, 1, 2, ... within each of adjacent runs of the given lengths ``[R]``."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def rank_in_run(values: np.ndarray) -> np.ndarray:
    """Count 0, 1, 2, ... within each run of equal values ``[n]``."""
    return place_in_run(np.diff(sequence_offsets(values)))


def run_indices(ends: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Indices of the runs ``ends - lengths : ends``, one run after the other."""
    return np.repeat(ends - lengths, lengths) + place_in_run(lengths)


def pad_runs(items: np.ndarray, ends: np.ndarray, lengths: np.ndarray, width: int) -> np.ndarray:
    """The runs ``ends - lengths : ends`` of some items as rows, padded with 0: ``[R, width]``."""
    rows = np.zeros((len(ends), width), dtype=np.int64)
    rows[np.arange(width) < lengths[:, None]] = items[run_indices(ends, lengths)]
    return rows


def whole_sequences(offsets: np.ndarray) -> Windows:
    """A window a sequence, of any length, in which every item but the first is a target."""
    return Windows(offsets[:-1], offsets[1:], offsets[:-1] + 1)


def make_windows(sequences: Windows, max_history: int, stride: int) -> Windows:
    """Cut sequences into windows so that every target of theirs stays one once.

    A sequence of up to ``max_history + 1`` items is one window, and each of its targets sees
    exactly what a prefix row would hold. A longer one becomes windows of that length which
    overlap: those after the first supervise their last ``stride`` items.

    Args:
        sequences: windows of any length.
        max_history: items of history at most.
        stride: new targets of each further window.
    """
    start = np.maximum(sequences.start, sequences.supervised_from - max_history)
    lengths = sequences.end - start
    beyond = np.maximum(lengths - 1 - max_history, 0)
    counts = np.where(sequences.end > sequences.supervised_from, 1 + -(-beyond // stride), 0)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    nth = place_in_run(counts)
    first, length = start[sequence], lengths[sequence]
    end = np.minimum(max_history + 1 + nth * stride, length)
    start = np.maximum(end - max_history - 1, 0)
    further = first + max_history + 1 + (nth - 1) * stride
    supervised_from = np.where(nth == 0, sequences.supervised_from[sequence], further)
    return Windows(first + start, first + end, supervised_from)


def make_prefixes(sequences: Windows, max_history: int) -> Windows:
    """A window for every target of sequences: the item, its only target, and those before.

    Args:
        sequences: see :func:`make_windows`.
        max_history: items of history at most.
    """
    counts = np.maximum(sequences.end - sequences.supervised_from, 0)
    sequence = np.repeat(np.arange(len(counts)), counts)
    target = sequences.supervised_from[sequence] + place_in_run(counts)
    return Windows(np.maximum(sequences.start[sequence], target - max_history), target + 1, target)


def cut_windows(
    windows: Windows, probability: float, rng: np.random.Generator, *, whole: bool = False
) -> Windows:
    """Cut each window in two at a random item with the given probability.

    The second part starts at the cut, so its targets see a history with a random start, while
    every target of the epoch is still supervised exactly once.

    Args:
        whole: whether the second part has all that comes before the cut as its history instead.
    """
    first_cut = np.maximum(windows.start + 1, windows.supervised_from)
    choices = windows.end - 1 - first_cut  # a part must keep at least one target
    cut = first_cut + np.floor(rng.random(len(choices)) * np.maximum(choices, 0)).astype(np.int64)
    chosen = (rng.random(len(choices)) < probability) & (choices > 0)
    cut = cut[chosen]
    end = windows.end.copy()
    end[chosen] = cut + 1
    return Windows(
        np.concatenate([windows.start, windows.start[chosen] if whole else cut]),
        np.concatenate([end, windows.end[chosen]]),
        np.concatenate([windows.supervised_from, cut + 1]),
    )


def join_rows(
    users: np.ndarray, items: np.ndarray, ends: np.ndarray, lengths: np.ndarray, targets: np.ndarray
) -> JoinedRows:
    """Join rows of a user that overlap, so that shared items are kept and computed once.

    A row follows another when what the one holds in full (history and target) ends with the
    history of the other, or begins it. Rows of which the histories grow item by item become one
    window with many targets; where histories were cut to a length, or skip a target, the rows
    share a sequence but each has a window of its own, which begins where its history does.

    Args:
        users: of the rows ``[R]``.
        items: flat items of the histories.
        ends: where in them each history ends ``[R]``.
        lengths: of the histories ``[R]``; a target without one is kept as an item alone.
        targets: ``[R]``, one at least.
    """
    order = np.lexsort((lengths, users))
    users, ends, lengths, targets = (x[order] for x in (users, ends, lengths, targets))
    # Rows in full, one after the other: the history, then the target.
    full_ends = np.cumsum(lengths + 1)
    is_target = np.zeros(full_ends[-1], dtype=bool)
    is_target[full_ends - 1] = True
    full = np.empty(full_ends[-1], dtype=items.dtype)
    full[is_target], full[~is_target] = targets, items[run_indices(ends, lengths)]

    # How many items, at its begin, each row shares with the end of the row before it.
    shared = np.minimum(lengths[:-1] + 1, lengths[1:]) * (users[:-1] == users[1:])
    before = run_indices(full_ends[:-1], shared)
    differs = full[before] != full[run_indices(full_ends[:-1] + shared, shared)]
    shared[np.repeat(np.arange(len(shared)), shared)[differs]] = 0
    shared = np.append(0, shared)

    added = lengths + 1 - shared
    position = np.cumsum(added) - 1  # of each row's target, among the items that are kept
    start = position - lengths
    begins = np.flatnonzero((shared == 0) | (added > 1) | (np.diff(start, prepend=-1) != 0))
    end = position[np.append(begins[1:], len(position)) - 1] + 1
    start, first = start[begins], position[begins]
    return JoinedRows(
        items=full[run_indices(full_ends, added)],
        offsets=np.append((position + 1 - added)[shared == 0], added.sum()),
        windows=Windows(start, end, np.maximum(first, start + 1)),
        row=np.repeat(order, added),
    )
