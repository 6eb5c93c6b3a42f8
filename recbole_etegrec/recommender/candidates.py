"""The items that the item head tells targets from in training: the catalogue, or a sample of it."""

from typing import NamedTuple

import torch


class Candidates(NamedTuple):
    """The items that targets are told from in a micro-batch.

    Attributes:
        ids: item ids, ascending ``[S]``.
        share: of the catalogue's items that are among them; 1 for all.
    """

    ids: torch.Tensor
    share: float

    @property
    def whole(self) -> bool:
        """Whether they are the catalogue, each item once."""
        return self.share == 1

    def places_of(self, targets: torch.Tensor) -> torch.Tensor:
        """Where the targets are among the vectors that a loss reads ``[n]``.

        These are all vectors by their items, or those of the targets and then of the candidates.
        """
        return targets if self.whole else torch.arange(len(targets), device=targets.device)


def sample_size(n_items: int, chosen: int | None) -> int:
    """How many items a target is told from at most: as chosen, or a sixth of the catalogue.

    A sixth ranks nearly as well as all do, in less time; at least 2,048, and at most 50,000.
    """
    return chosen or min(max((n_items - 1) // 6, 2048), 50_000)


def draw_candidates(n_items: int, most: int, device: torch.device) -> Candidates:
    """The catalogue, or a random sample of it where it has more items than `most`.

    One item is drawn from each of ``most`` equal stretches of the catalogue, so that each item is
    expected as often as any other, and a sample as large as the catalogue is the catalogue. An
    item on the border of two stretches may come twice.

    Args:
        n_items: items, the padding item included.
    """
    count = n_items - 1
    if count <= most:
        return Candidates(torch.arange(1, n_items, device=device), 1.0)
    place = torch.arange(most, device=device, dtype=torch.float64)
    place += torch.rand(most, device=device, dtype=torch.float64)
    ids = 1 + (place * (count / most)).long().clamp_max(count - 1)
    return Candidates(ids, most / count)
