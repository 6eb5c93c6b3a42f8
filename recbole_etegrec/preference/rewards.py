"""Rewards: what a candidate is worth, in a table.

To add one: a function of :class:`Proposed`, and a line in ``REWARDS``.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch


class Proposed(NamedTuple):
    """What a model proposes for some targets.

    Attributes:
        items: ids, the most probable first; 0 where there are no more ``[B, K]``.
        codes: of these ``[B, K, L]``.
        log_probs: of the codes by the present model, in nats ``[B, K, L]``.
        target: ids ``[B]``.
        target_codes: ``[B, L]``.
        found: whether the target was proposed, and not put in ``[B]``.
        disliked: which of the items the user has rated low; they were not proposed ``[B, K]``.
        head: gives the log-probabilities of the items by the item head ``[B, K]``.
    """

    items: torch.Tensor
    codes: torch.Tensor
    log_probs: torch.Tensor
    target: torch.Tensor
    target_codes: torch.Tensor
    found: torch.Tensor
    disliked: torch.Tensor
    head: Callable[[], torch.Tensor]

    @property
    def hits(self) -> torch.Tensor:
        """Which of the items are the target ``[B, K]``."""
        return (self.items == self.target.unsqueeze(1)) & (self.items > 0)

    @property
    def shared(self) -> torch.Tensor:
        """Codes that each item begins with as the target does ``[B, K]``."""
        same = self.codes == self.target_codes.unsqueeze(1)
        return same.long().cumprod(dim=2).sum(dim=2)


def hit(proposed: Proposed) -> torch.Tensor:
    """1 of the target, 0 of all others ``[B, K]``."""
    return proposed.hits.float()


def ranked(proposed: Proposed) -> torch.Tensor:
    """As `hit`, and the further up another stands, the more below 0 it is ``[B, K]``.

    That of place ``k`` (from 0) is ``- 1 / log2(k + 2)``, divided by the sum of these over all
    places, as MiniOneRec's code has it; 0 where the target was not found.
    """
    places = torch.arange(proposed.items.shape[1], device=proposed.items.device)
    share = 1 / (places + 2).float().log2()
    worse = -(share / share.sum()) * proposed.found.unsqueeze(1)
    return torch.where(proposed.hits, 1.0, worse)


def prefix(proposed: Proposed) -> torch.Tensor:
    """The share of its codes that an item begins with as the target does ``[B, K]``."""
    return proposed.shared / proposed.codes.shape[2]


def item_head(proposed: Proposed) -> torch.Tensor:
    """The log-probability that the item head gives, in nats ``[B, K]``."""
    return proposed.head()


REWARDS: dict[str, Callable[[Proposed], torch.Tensor]] = {
    "hit": hit,
    "ranked": ranked,
    "prefix": prefix,
    "item_head": item_head,
}
