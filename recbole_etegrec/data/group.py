"""Candidates for a target, of which some are preferred to others."""

from typing import NamedTuple

import torch


class Group(NamedTuple):
    """Candidates for the last target of each row of a micro-batch.

    Attributes:
        items: ids; 0 where a row has fewer ``[B, K]``.
        after: items of each row that come before its target, 1 at least ``[B]``.
        advantages: by how much each candidate is better than the others of its row; 0 of what is
            to be left as it is ``[B, K]``.
        reference: log-probabilities of their codes by the model of before, in nats ``[B, K, L]``.
        real: which rows have a target, and so count ``[B]``.
        each_step: rows of a step on average, over all processes, by which sums are divided.
    """

    items: torch.Tensor
    after: torch.Tensor
    advantages: torch.Tensor
    reference: torch.Tensor
    real: torch.Tensor
    each_step: float
