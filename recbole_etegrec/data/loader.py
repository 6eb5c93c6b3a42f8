"""Batches of whole sequences as item ids, within a budget of tokens.

Batches carry item ids, never codes: codes change after every tokenizer epoch. What the losses
need to know of a batch (which positions have a target, which targets are distinct) is worked out
here, on the CPU, so that nothing has to be read back from the device for it.

An optimizer step is one batch, however it is split: into micro-batches when gradients are
accumulated, over processes when there are several. Which windows a step holds depends on the
seed, the epoch and the budget alone, so a run trains the same on any number of processes.

Every target of an epoch weighs the same, in whatever rows and steps it comes: what a step sums
over its targets is divided by the number that a step of the epoch has on average.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from recbole_etegrec.data.dataset import WholeSequenceDataset
from recbole_etegrec.data.dislikes import Dislikes
from recbole_etegrec.data.ends import draw_ends, with_ends
from recbole_etegrec.data.group import Group
from recbole_etegrec.data.sequences import (
    Windows,
    cut_windows,
    make_prefixes,
    make_windows,
    place_in_run,
)
from recbole_etegrec.data.tasks import TaskBatch
from recbole_etegrec.data.tasks.rows import TaskRows
from recbole_etegrec.data.teacher import Teacher


class SequenceBatch(NamedTuple):
    """Windows of user sequences: one micro-batch of an optimizer step.

    Attributes:
        items: item ids ``[B, T]``, right-padded with 0.
        target_index: flat index into ``[B, T - 1]`` of each supervised position ``[n]``; position
            ``t`` stands for the prediction of item ``t + 1`` from the items up to ``t``.
        targets: the item to predict at each supervised position ``[n]``.
        distinct: the distinct targets of the whole step, ascending ``[U]``.
        distinct_index: where each target stands in ``distinct`` ``[n]``.
        step_targets: targets of the whole step; a number, or a tensor of it ``[]``.
        step_items: items of the whole step, padding not counted.
        micro_batches: of the step, on all processes.
        targets_a_step: the mean of `step_targets` over the epoch, by which sums over targets are
            divided; a number, or a tensor of it ``[]``; None: `step_targets` itself is taken.
        real_targets: which of the targets count ``[n]``; None for all.
        real_distinct: which of the distinct targets there are ``[U]``; None for all.
        taught_items: items that a teacher scores for each target ``[n, K]``; None: there is none.
        taught_scores: log-probabilities that it gives them ``[n, K]``.
        known: items of each row before its first target ``[B]``; None where rows are no histories.
        tasks: rows of tasks that the step has besides; None: it has none.
        rows_a_step: windows of a step, on average over the epoch.
        disliked: what the user of each window has rated low, its last target first where that is
            among it; 0 where there is no more ``[B, D]``; None: nobody is asked.
        group: candidates for the last target of each window; None: there are none.
    """

    items: torch.Tensor
    target_index: torch.Tensor
    targets: torch.Tensor
    distinct: torch.Tensor
    distinct_index: torch.Tensor
    step_targets: int | torch.Tensor
    step_items: int
    micro_batches: int
    targets_a_step: float | torch.Tensor | None = None
    real_targets: torch.Tensor | None = None
    real_distinct: torch.Tensor | None = None
    taught_items: torch.Tensor | None = None
    taught_scores: torch.Tensor | None = None
    known: torch.Tensor | None = None
    tasks: TaskBatch | None = None
    rows_a_step: float | None = None
    disliked: torch.Tensor | None = None
    group: Group | None = None

    def to(self, device: torch.device) -> "SequenceBatch":
        """The same batch on a device."""
        return SequenceBatch(
            *(x.to(device, non_blocking=True) if hasattr(x, "to") else x for x in self)
        )

    @property
    def divisor(self) -> float | torch.Tensor:
        """What sums over targets are divided by."""
        return self.step_targets if self.targets_a_step is None else self.targets_a_step


def split_by_budget(order: np.ndarray, lengths: np.ndarray, max_items: int) -> list[np.ndarray]:
    """Cut a list sorted by ascending length where rows times longest row would pass a budget."""
    batches, begin = [], 0
    while begin < len(order):
        ahead = lengths[begin : begin + max_items]
        padded = ahead * np.arange(1, len(ahead) + 1)
        count = max(int(np.searchsorted(padded, max_items, side="right")), 1)
        batches.append(order[begin : begin + count])
        begin += count
    return batches


class SequenceLoader:
    """Training loader: each element is one optimizer step, a list of its micro-batches.

    The micro-batches are those of one process, as :meth:`split` says; by default one holds the
    whole step. ``loader._dataset`` is RecBole's training dataset, as in RecBole's own loaders.
    What ``loader.teacher`` says of targets goes into their batches, where there is one, and so do
    what ``loader.dislikes`` says of their users, and rows of ``loader.tasks``, where
    :meth:`take_tasks` was told to mix them.

    Steps of sequences are filled up to `max_tokens`. Long prefixes would make steps of few targets
    so: steps of prefixes have equally many, and those of more tokens are computed in several parts.

    Args:
        dataset: the training part.
        max_tokens: padded code tokens at most in a step, or part of one, over all its
            micro-batches.
        code_length: tokens an item.
        training_rows: ``sequences``, windows in which all items are targets, or ``prefixes``, one
            window a target, which the last two do not change.
        step_targets: targets of a step of prefixes; none: as many as there were on average if
            steps were filled up to `max_tokens`.
        window_overlap: share of a window that repeats the one before, in [0, 1), for users with
            more interactions than a window holds.
        cut_probability: share of windows cut at a random item in each epoch.
        whole_histories: whether what comes after a cut has all before it as its history.
    """

    def __init__(
        self,
        dataset: WholeSequenceDataset,
        *,
        max_tokens: int,
        code_length: int,
        training_rows: str,
        window_overlap: float,
        cut_probability: float,
        seed: int,
        step_targets: int | None = None,
        whole_histories: bool = False,
    ):
        self._dataset = dataset
        self.teacher: Teacher | None = None
        self.tasks: TaskRows | None = None
        self.mixes_tasks = False
        self.dislikes: Dislikes | None = None
        self.stride = max(round(dataset.max_item_list_len * (1 - window_overlap)), 1)
        self.step_targets = step_targets
        self.by_prefix = training_rows == "prefixes"
        self.ends: np.ndarray | None = None
        self._take_items(dataset.sequences.items, dataset.windows)
        self.max_items, self.seed = max(max_tokens // code_length, 1), seed
        self.code_length = code_length
        self.cut_probability, self.whole_histories = cut_probability, whole_histories
        self.split()
        self.draw(0)

    def _take_items(self, items: np.ndarray, sequences: Windows) -> None:
        """Take the items that windows are of, and windows of any length that are cut to size."""
        self.items, self.uncut = items, sequences
        most = self._dataset.max_item_list_len
        if self.by_prefix:
            self.whole = make_prefixes(sequences, most)
        else:
            self.whole = make_windows(sequences, most, self.stride)
        self.longest = int((self.whole.end - self.whole.start).max(initial=0))

    def take_teacher(self, ask: Callable[[np.ndarray, Windows], Teacher], *, ends: bool) -> None:
        """Take a teacher, and draw the targets that only it knows.

        Args:
            ask: gives the teacher of items and windows of them, of any length.
            ends: whether what comes after the last item of each user is a target too: an item that
                the teacher finds probable, another in each epoch.
        """
        items, sequences, places = self.items, self.uncut, None
        if ends:
            items, sequences, places = with_ends(self._dataset.sequences, self._dataset.windows)
        self.teacher, self.ends = ask(items, sequences), places
        if ends:
            self._take_items(items, sequences)
        self.draw(0)

    def take_tasks(self, tasks: TaskRows | None, *, mixed: bool) -> None:
        """Take rows of tasks.

        Args:
            mixed: whether each step has its share of them; if not, others may ask for them.
        """
        self.tasks, self.mixes_tasks = tasks, mixed and tasks is not None
        self.draw(0)

    def split(self, micro_batches: int = 1, processes: int = 1, rank: int = 0) -> None:
        """Give this process its share of each step.

        Args:
            micro_batches: of a step, or part of one, on each process.
            rank: of this process.
        """
        self.micro_batches = micro_batches * processes
        self.processes, self.rank = processes, rank

    def draw(self, epoch: int) -> None:
        """Draw the cuts and steps of an epoch; the next iteration yields them."""
        self.epoch = epoch
        rng = np.random.default_rng((self.seed, epoch))
        self.windows = self.whole
        if self.cut_probability > 0:
            self.windows = cut_windows(
                self.whole, self.cut_probability, rng, whole=self.whole_histories
            )
        lengths = self.windows.end - self.windows.start
        shuffled = rng.permutation(len(lengths))
        order = shuffled[np.argsort(lengths[shuffled], kind="stable")]
        steps = split_by_budget(order, lengths[order], self.max_items)
        if self.by_prefix and steps:
            number = len(steps)
            if self.step_targets is not None:
                number = max(round(len(order) / self.step_targets), 1)
            steps = np.array_split(order, number)
        self.steps = [steps[i] for i in rng.permutation(len(steps))]
        targets = (self.windows.end - self.windows.supervised_from).sum()
        self.targets_a_step = float(targets / max(len(steps), 1))
        if self.mixes_tasks:
            self.task_steps = self.tasks.draw(epoch, len(self.steps))
        self.rows_a_step = len(lengths) / max(len(steps), 1)
        if self.ends is not None:
            self.items[self.ends] = draw_ends(self.teacher, self.ends, rng)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[SequenceBatch]]:
        return self.iterate()

    def iterate(self, first: int = 0) -> Iterator[list[SequenceBatch]]:
        """The steps of the epoch from number ``first`` on."""
        for step, rows in enumerate(self.steps[first:], first):
            start, end, supervised_from = (column[rows] for column in self.windows)
            counts = end - supervised_from
            targets = self.items[np.repeat(supervised_from, counts) + place_in_run(counts)]
            distinct = np.unique(targets).astype(np.int64)
            parts = self._parts(rows)
            tasks = self._tasks(step, parts * self.micro_batches)
            yield [
                self._gather(rows, share, distinct)._replace(
                    step_targets=len(targets),
                    step_items=int((end - start).sum()),
                    micro_batches=parts * self.micro_batches,
                    targets_a_step=self.targets_a_step,
                    tasks=tasks[part * self.micro_batches + number],
                    rows_a_step=self.rows_a_step,
                    **self._taught(share),
                    **self._disliked(share if len(share) else rows[:1]),
                )
                for part in range(parts)  # the same on any number of processes
                for number in range(self.rank, self.micro_batches, self.processes)
                for share in (rows[part::parts][number :: self.micro_batches],)
            ]

    def first_part(self) -> SequenceBatch:
        """The first step of the epoch, or part of one, the same batch on every process."""
        split = self.micro_batches, self.processes, self.rank
        self.split()
        batch = next(self.iterate())[0]
        self.micro_batches, self.processes, self.rank = split
        return batch

    def largest_micro_batch(self) -> SequenceBatch:
        """The micro-batch of the epoch in which most tokens are read, padding included."""
        tokens = (self.windows.end - self.windows.start) * self.code_length - 1  # not the last
        own = (rows[:: self._parts(rows) * self.micro_batches] for rows in self.steps)
        sizes = [tokens[rows].max() * len(rows) for rows in own]
        return next(self.iterate(int(np.argmax(sizes))))[0]

    def _parts(self, rows: np.ndarray) -> int:
        """The parts that the windows of a step are computed in, each within the budget."""
        longest = (self.windows.end[rows] - self.windows.start[rows]).max()
        return math.ceil(len(rows) / max(self.max_items // longest, 1))

    def _gather(self, rows: np.ndarray, own: np.ndarray, distinct: np.ndarray) -> SequenceBatch:
        """Those windows of a step that are a micro-batch's own; it says nothing of the step."""
        # Every process takes part in every step: where there are fewer windows than micro-batches,
        # some hold a window without targets.
        start, end, supervised_from = (
            column[own if len(own) else rows[:1]] for column in self.windows
        )
        if len(own) == 0:
            supervised_from = end
        position = np.arange((end - start).max())
        source = start[:, None] + position
        inside = source < end[:, None]
        items = np.where(inside, self.items[np.where(inside, source, 0)], np.int64(0))
        supervised = inside & (source >= supervised_from[:, None])
        target_index = np.flatnonzero(supervised[:, 1:])
        targets = items[:, 1:].reshape(-1)[target_index]
        index = np.searchsorted(distinct, targets)
        arrays = (items, target_index, targets, distinct, index)
        return SequenceBatch(
            *map(torch.from_numpy, arrays),
            step_targets=0,
            step_items=0,
            micro_batches=1,
            known=torch.from_numpy(supervised_from - start),
        )

    def _tasks(self, step: int, parts: int) -> list[TaskBatch] | list[None]:
        """The rows of tasks of a step, for each of its micro-batches on all processes."""
        if not self.mixes_tasks:
            return [None] * parts
        return self.tasks.batches(self.task_steps, step, parts)

    def _taught(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """What the teacher says of the targets of some windows, in their order, row by row."""
        if self.teacher is None:
            return {}
        counts = self.windows.end[rows] - self.windows.supervised_from[rows]
        places = np.repeat(self.windows.supervised_from[rows], counts) + place_in_run(counts)
        items, scores = map(torch.from_numpy, self.teacher(places))
        return {"taught_items": items, "taught_scores": scores}

    def _disliked(self, rows: np.ndarray) -> dict[str, torch.Tensor]:
        """What the users of some windows have rated low."""
        if self.dislikes is None:
            return {}
        return {"disliked": torch.from_numpy(self.dislikes(self.windows.end[rows] - 1, self.epoch))}
