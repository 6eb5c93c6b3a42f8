"""Batches of catalogue items, for what is learnt of items alone."""

from collections.abc import Iterator

import numpy as np
import torch

from recbole_etegrec.data.loader import SequenceBatch


def seed_of(*numbers: int) -> int:
    """A seed that follows from a seed and the place it is used at."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class ItemLoader:
    """Each element is one optimizer step over some items, in random order, as a list of one batch.

    It has the interface of :class:`SequenceLoader`. A batch has items, as its distinct targets,
    and no histories. Every process computes all of it: the tokenizer is small.

    Args:
        n_items: items and the padding item.
        batch_size: items a step.

    Attributes:
        generator: of the present epoch; it has given the order of the items once they are iterated
            over, and what else is drawn then follows from it too.
    """

    def __init__(self, n_items: int, *, batch_size: int, seed: int):
        self.n_items, self.batch_size, self.seed = n_items, batch_size, seed
        self.split()
        self.draw(0)

    def split(self, micro_batches: int = 1, processes: int = 1, rank: int = 0) -> None:
        """Tell the batches how many processes there are; shares of their losses sum to means."""
        self.processes = processes

    def draw(self, epoch: int) -> None:
        """Begin an epoch; the next iteration yields its steps."""
        self.generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))

    def __len__(self) -> int:
        return -(-(self.n_items - 1) // self.batch_size)

    def iterate(self, first: int = 0) -> Iterator[list[SequenceBatch]]:
        """The steps of the epoch from number ``first`` on."""
        order = torch.randperm(self.n_items - 1, generator=self.generator) + 1
        none = torch.zeros(0, dtype=torch.long)
        for items in order.split(self.batch_size)[first:]:
            yield [
                SequenceBatch(
                    none.view(0, 0),
                    none,
                    none,
                    items,
                    none,
                    step_targets=len(items),
                    step_items=0,
                    micro_batches=self.processes,
                )
            ]
