"""How good the codes of a catalogue are: how they spread items, and what they keep of them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from recbole_etegrec.tokenizer.residual_quantizer import squared_distances

_SAMPLE = 2000  # items whose neighbours are looked at, so that it is quick at any size
_NEIGHBOURS = 10
CELLS = 2**25  # distances at once, 128 MiB


@dataclass(frozen=True)
class CodeHealth:
    """The first five are known from codes alone, the others from the item embeddings too.

    Attributes:
        usage: share of codes used, per semantic level.
        perplexity: ``exp(entropy)`` of the codes' use, per semantic level.
        collision_rate: share of items that share all their semantic codes with another.
        largest_group: items in the largest such group.
        changed: share of items whose codes differ from the previous table.
        nearest_collision_rate: ``collision_rate`` if every item had its nearest codes.
        reconstruction: mean square of what embeddings lose by being coded and decoded.
        neighbours_kept: see :func:`neighbours_kept`.
    """

    usage: list[float]
    perplexity: list[float]
    collision_rate: float
    largest_group: int
    changed: float
    nearest_collision_rate: float | None = None
    reconstruction: float | None = None
    neighbours_kept: float | None = None

    def record(self) -> dict[str, Any]:
        """What is known, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        levels = " ".join(
            f"{u:.0%}/{p:.0f}" for u, p in zip(self.usage, self.perplexity, strict=True)
        )
        text = (
            f"usage/perplexity {levels}, collisions {self.collision_rate:.1%} "
            f"(largest group {self.largest_group}), codes changed {self.changed:.1%}"
        )
        if self.nearest_collision_rate is not None:
            text += f", collisions of nearest codes {self.nearest_collision_rate:.1%}"
        if self.reconstruction is not None:
            text += f", error {self.reconstruction:.4f}"
        if self.neighbours_kept is not None:
            text += f", neighbours kept {self.neighbours_kept:.1%}"
        return text


class Neighbours(NamedTuple):
    """Attributes: some rows ``[S]``, and the rows nearest to each, without itself ``[S, k]``."""

    rows: torch.Tensor
    nearest: torch.Tensor


def nearest_neighbours(vectors: torch.Tensor) -> Neighbours:
    """The 10 nearest of some 2,000 rows spread evenly over ``[N, D]``, or of all if there are less.

    Distances are Euclidean, which is what codes quantize, and not cosine.

    Returns:
        On the CPU.
    """
    count = len(vectors)
    rows = torch.linspace(0, count - 1, min(count, _SAMPLE), dtype=torch.float64).round().long()
    nearest = []
    for part in rows.split(max(CELLS // count, 1)):
        distances = squared_distances(vectors[part], vectors)
        distances[torch.arange(len(part)), part] = torch.inf
        found = distances.topk(min(_NEIGHBOURS, count - 1), largest=False)
        nearest.append(found.indices.cpu())
    return Neighbours(rows, torch.cat(nearest))


def neighbours_kept(first_codes: torch.Tensor, neighbours: Neighbours) -> float:
    """The share of items' nearest neighbours that share their first code.

    Args:
        first_codes: of all rows ``[N]``.
    """
    first_codes = first_codes.cpu()
    same = first_codes[neighbours.rows].unsqueeze(1) == first_codes[neighbours.nearest]
    return float(same.float().mean())
