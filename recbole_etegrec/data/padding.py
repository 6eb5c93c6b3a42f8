"""Training batches of few shapes, for whoever prepares something for each shape.

What is added counts in no loss: `real_targets` and `real_distinct` of a batch tell it apart.
"""

import torch
from torch.nn import functional as F

from recbole_etegrec.data.loader import SequenceBatch

_EVERY = 12  # widths up to this one are all taken; further ones are a seventh apart


def pad_batch(
    batch: SequenceBatch, max_items: int, n_items: int, max_rows: int | None = None
) -> SequenceBatch:
    """A step that is one batch, with rows and columns of padding.

    It is as wide as one of a few widths, and has as many rows of it as the step's budget allows,
    or, where these are too few, as many of the shortest that are padded to it: a seventh more.
    Every position is one of its targets, most of them real ones; of prefixes, one of each row.

    Args:
        batch: on the CPU.
        max_items: the budget of the loader.
        n_items: items of the catalogue, and the padding item.
        max_rows: that a step of prefixes has, which is not filled up to the budget.
    """
    shortest, width = _span(batch.items.shape[1])
    most = min(max_items // width, max_rows or max_items)
    rows = most if len(batch.items) <= most else max(max_items // shortest, len(batch.items))
    old_width = batch.items.shape[1] - 1
    row = batch.target_index // old_width
    index = row * (width - 1) + batch.target_index - row * old_width
    if max_rows is None:
        target_index = torch.arange(rows * (width - 1))
    else:  # an encoder reads a row once for each of its targets
        target_index = (torch.arange(rows) * (width - 1)).index_copy_(0, row, index)
        index = row
    places = len(target_index)

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(places, *values.shape[1:]).index_copy_(0, index, values)

    taught = {"taught_items": batch.taught_items, "taught_scores": batch.taught_scores}
    distinct = min(places, n_items - 1)
    known = len(batch.distinct)
    further = rows - len(batch.items)
    padding = (0, width - batch.items.shape[1], 0, further)
    return SequenceBatch(
        items=F.pad(batch.items, padding),
        target_index=target_index,
        targets=spread(batch.targets),
        distinct=F.pad(batch.distinct, (0, distinct - known)),
        distinct_index=spread(batch.distinct_index),
        step_targets=torch.tensor(float(batch.step_targets)),
        targets_a_step=torch.tensor(float(batch.divisor)),
        step_items=0,
        micro_batches=batch.micro_batches,
        real_targets=spread(torch.ones_like(index, dtype=torch.bool)),
        real_distinct=torch.arange(distinct) < known,
        known=None if batch.known is None else F.pad(batch.known, (0, further)),
        **{name: spread(values) for name, values in taught.items() if values is not None},
    )


def _span(length: int) -> tuple[int, int]:
    """The lengths that are padded to one width: the shortest, and the longest, which is it."""
    shortest = longest = 1
    while longest < length:
        shortest = longest + 1
        longest = shortest if shortest <= _EVERY else shortest + shortest // 7
    return shortest, longest
