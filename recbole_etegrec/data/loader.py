"""Training batches of whole sequences, by token budget.

Batches carry item ids, never codes: codes change after every tokenizer epoch. What the losses
need to know about a batch (which positions have a target, which targets are distinct) is worked
out here, on the CPU, so that no training step waits for the device.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from recbole_etegrec.data.dataset import WholeSequenceDataset, sequence_offsets


class SequenceBatch(NamedTuple):
    """Windows of user sequences.

    Attributes:
        items: item ids ``[B, T]``, right-padded with 0.
        target_index: flat index into ``[B, T - 1]`` of each supervised position ``[n]``; position
            ``t`` stands for the prediction of item ``t + 1`` from the items up to ``t``.
        targets: the item to predict at each supervised position ``[n]``.
        distinct: the distinct targets, ascending ``[U]``.
        distinct_index: where each target stands in ``distinct`` ``[n]``.
    """

    items: torch.Tensor
    target_index: torch.Tensor
    targets: torch.Tensor
    distinct: torch.Tensor
    distinct_index: torch.Tensor

    @classmethod
    def from_numpy(cls, items: np.ndarray, supervised: np.ndarray) -> "SequenceBatch":
        """Build a batch.

        Args:
            items: item ids ``[B, T]``, 0 where there is none.
            supervised: which of items ``1 .. T-1`` are targets, bool ``[B, T - 1]``.
        """
        target_index = np.flatnonzero(supervised)
        targets = items[:, 1:].reshape(-1)[target_index]
        distinct, distinct_index = np.unique(targets, return_inverse=True)
        arrays = (items, target_index, targets, distinct, distinct_index)
        return cls(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


class Windows(NamedTuple):
    """Pieces of the flat interaction list; items from ``supervised_from`` on are targets."""

    start: np.ndarray
    end: np.ndarray
    supervised_from: np.ndarray


def make_windows(offsets: np.ndarray, max_history: int, stride: int) -> Windows:
    """Cut sequences into windows so that every item but a user's first is a target once.

    A sequence of up to ``max_history + 1`` items is one window, and each of its targets sees
    exactly what a prefix row would hold. A longer one becomes windows of that length which
    overlap: those after the first supervise their last ``stride`` items.

    Args:
        offsets: where sequences begin ``[S + 1]``.
        max_history: items of history at most.
        stride: new targets of each further window.
    """
    lengths = np.diff(offsets)
    beyond = np.maximum(lengths - 1 - max_history, 0)
    counts = np.where(lengths > 1, 1 + -(-beyond // stride), 0)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    nth = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)
    first, length = offsets[:-1][sequence], lengths[sequence]
    end = np.minimum(max_history + 1 + nth * stride, length)
    start = np.maximum(end - max_history - 1, 0)
    supervised_from = np.where(nth == 0, 1, max_history + 1 + (nth - 1) * stride)
    return Windows(first + start, first + end, first + supervised_from)


def cut_windows(windows: Windows, probability: float, rng: np.random.Generator) -> Windows:
    """Cut each window in two at a random item with the given probability.

    The second piece starts at the cut, so its targets see a history with a random start, while
    every target of the epoch is still supervised exactly once.
    """
    first_cut = np.maximum(windows.start + 1, windows.supervised_from)
    choices = windows.end - 1 - first_cut  # a piece must keep at least one target
    cut = first_cut + np.floor(rng.random(len(choices)) * np.maximum(choices, 0)).astype(np.int64)
    chosen = (rng.random(len(choices)) < probability) & (choices > 0)
    cut = cut[chosen]
    end = windows.end.copy()
    end[chosen] = cut + 1
    return Windows(
        np.concatenate([windows.start, cut]),
        np.concatenate([end, windows.end[chosen]]),
        np.concatenate([windows.supervised_from, cut + 1]),
    )


class SequenceWindows(Dataset):
    """The windows of one epoch over the training interactions."""

    def __init__(self, items: np.ndarray, whole: Windows, cut_probability: float):
        self.items, self.whole, self.cut_probability = items, whole, cut_probability
        self.windows = whole

    def draw(self, rng: np.random.Generator) -> None:
        """Draw the random cuts of an epoch."""
        self.windows = self.whole
        if self.cut_probability > 0:
            self.windows = cut_windows(self.whole, self.cut_probability, rng)

    def __len__(self) -> int:
        return len(self.windows.start)

    def __getitem__(self, index: int) -> int:
        return index

    def lengths(self) -> np.ndarray:
        """Items in each window."""
        return self.windows.end - self.windows.start

    def collate(self, index: list[int]) -> SequenceBatch:
        """Gather windows into one right-padded batch."""
        start, end, supervised_from = (column[index] for column in self.windows)
        position = np.arange((end - start).max())
        source = start[:, None] + position
        inside = source < end[:, None]
        items = np.where(inside, self.items[np.where(inside, source, 0)], 0)
        supervised = inside & (source >= supervised_from[:, None])
        return SequenceBatch.from_numpy(items, supervised[:, 1:])


class TokenBudgetSampler(Sampler):
    """Batches of windows of similar length whose padded size stays within a budget.

    Which windows share a batch, and the order of batches, change with the epoch; both depend on
    ``seed`` and the epoch alone.
    """

    def __init__(self, windows: SequenceWindows, max_items: int, seed: int, shuffle: bool = True):
        self.windows, self.max_items, self.seed, self.shuffle = windows, max_items, seed, shuffle
        self.draw(0)

    def draw(self, epoch: int) -> None:
        """Draw the batches of an epoch."""
        rng = np.random.default_rng((self.seed, epoch))
        if self.shuffle:
            self.windows.draw(rng)
        lengths = self.windows.lengths()
        shuffled = rng.permutation(len(lengths)) if self.shuffle else np.arange(len(lengths))
        order = shuffled[np.argsort(lengths[shuffled], kind="stable")]
        self.batches = split_by_budget(order, lengths[order], self.max_items)
        if self.shuffle:
            self.batches = [self.batches[i] for i in rng.permutation(len(self.batches))]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def split_by_budget(order: np.ndarray, lengths: np.ndarray, max_items: int) -> list[list[int]]:
    """Cut a list sorted by ascending length where rows times longest row would pass a budget."""
    batches, begin = [], 0
    while begin < len(order):
        ahead = lengths[begin : begin + max_items]
        padded = ahead * np.arange(1, len(ahead) + 1)
        count = max(int(np.searchsorted(padded, max_items, side="right")), 1)
        batches.append(order[begin : begin + count].tolist())
        begin += count
    return batches


class SequenceLoader(DataLoader):
    """Training loader: ``for batch in loader`` yields :class:`SequenceBatch` of item ids.

    ``loader._dataset`` is RecBole's training dataset, as in RecBole's own loaders.

    Args:
        dataset: the training part, interactions sorted by user and time.
        max_tokens: padded code tokens in a batch at most.
        code_length: tokens an item.
        window_overlap: share of a window that repeats the one before, in [0, 1), for users with
            more interactions than a window holds.
        cut_probability: share of windows cut at a random item in each epoch.
    """

    def __init__(
        self,
        dataset: WholeSequenceDataset,
        *,
        max_tokens: int,
        code_length: int,
        window_overlap: float,
        cut_probability: float,
        seed: int,
    ):
        items = dataset.inter_feat[dataset.iid_field].numpy()
        offsets = sequence_offsets(dataset.inter_feat[dataset.uid_field].numpy())
        stride = max(round(dataset.max_item_list_len * (1 - window_overlap)), 1)
        whole = make_windows(offsets, dataset.max_item_list_len, stride)
        windows = SequenceWindows(items, whole, cut_probability)
        sampler = TokenBudgetSampler(windows, max(max_tokens // code_length, 1), seed)
        self._dataset = dataset
        super().__init__(windows, batch_sampler=sampler, collate_fn=windows.collate)

    def draw(self, epoch: int) -> None:
        """Draw the batches of an epoch; the next iteration yields them."""
        self.batch_sampler.draw(epoch)
