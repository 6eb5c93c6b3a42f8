"""Epochs of tasks alone."""

from collections.abc import Iterator

import torch

from recbole_etegrec.data.loader import SequenceBatch
from recbole_etegrec.data.tasks.rows import TaskRows


class TaskLoader:
    """Each element is one optimizer step over rows of tasks, a list of its micro-batches.

    It has the interface of :class:`SequenceLoader`. A batch has one window, of padding and without
    a target, for what reads windows.

    Args:
        rows: of the tasks.
    """

    def __init__(self, rows: TaskRows):
        self.rows = rows
        self.split()
        self.draw(0)

    def split(self, micro_batches: int = 1, processes: int = 1, rank: int = 0) -> None:
        """Give this process its share of each step."""
        self.micro_batches = micro_batches * processes
        self.processes, self.rank = processes, rank

    def draw(self, epoch: int) -> None:
        """Draw the steps of an epoch; the next iteration yields them."""
        self.steps = self.rows.draw(epoch)

    def __len__(self) -> int:
        return len(self.steps.rows)

    def iterate(self, first: int = 0) -> Iterator[list[SequenceBatch]]:
        """The steps of the epoch from number ``first`` on."""
        none = torch.zeros(0, dtype=torch.long)
        asked = self.rows.rows.asked
        for step in range(first, len(self)):
            batches = self.rows.batches(self.steps, step, self.micro_batches)
            yield [
                SequenceBatch(
                    torch.zeros(1, 2, dtype=torch.long),
                    none,
                    none,
                    none,
                    none,
                    step_targets=int(asked[self.steps.rows[step]].sum()),
                    step_items=0,
                    micro_batches=self.micro_batches,
                    targets_a_step=float(self.steps.a_step.sum()),
                    known=torch.ones(1, dtype=torch.long),
                    tasks=batches[number],
                )
                for number in range(self.rank, self.micro_batches, self.processes)
            ]
