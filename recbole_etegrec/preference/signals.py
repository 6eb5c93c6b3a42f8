"""What is seen of an epoch's groups: how many tell nothing, how far the model has moved."""

import torch

from recbole_etegrec.losses.preference import divergence

_LOW, _HIGH, _EDGES = -5, 2, 71  # powers of ten between which divergences are counted
_COUNTS = ("groups", "dead", "found", "divergence", "candidates")


class Signals:
    """Sums over the groups of an epoch, on the device of the groups until they are read.

    Divergences are those of candidates, in nats a code, and are counted by their size, so that
    sums of several processes, or of both parts of an epoch that was stopped, give the same tail.
    """

    def __init__(self, device: torch.device, kept: list[float] | None = None):
        self.edges = torch.logspace(_LOW, _HIGH, _EDGES, device=device)
        start = kept or [0.0] * (len(_COUNTS) + _EDGES + 1)
        self.sums = torch.tensor(start, dtype=torch.float64, device=device)

    def add(
        self,
        log_probs: torch.Tensor,
        reference: torch.Tensor,
        there: torch.Tensor,
        alive: torch.Tensor,
        found: torch.Tensor,
    ) -> None:
        """Add groups.

        Args:
            log_probs: of their candidates' codes by the present model ``[B, K, L]``.
            reference: the same by the model of before.
            there: which candidates there are ``[B, K]``; none in rows that do not count.
            alive: which groups have something to teach ``[B]``.
            found: in which the target was proposed ``[B]``.
        """
        real = there.any(dim=1)
        moved = divergence(log_probs, reference).mean(dim=2)[there].double()
        counts = [real.sum(), (real & ~alive).sum(), (real & found).sum(), moved.sum(), there.sum()]
        places = torch.bucketize(moved.float(), self.edges)
        histogram = torch.bincount(places, minlength=_EDGES + 1)
        self.sums += torch.cat([torch.stack([c.double() for c in counts]), histogram.double()])

    def summary(self, sums: list[float]) -> dict[str, float]:
        """What sums over all processes say.

        Returns:
            ``dead_groups`` and ``found_targets``, shares of the groups; ``kl``, the mean
            divergence, and ``kl_tail``, what one candidate in a hundred passes, in nats a code.
        """
        counts = dict(zip(_COUNTS, sums, strict=False))
        groups, candidates = max(counts["groups"], 1), max(counts["candidates"], 1)
        below = torch.tensor(sums[len(_COUNTS) :]).cumsum(0)
        place = int(torch.searchsorted(below, 0.99 * candidates).clamp_max(_EDGES - 1))
        return {
            "dead_groups": counts["dead"] / groups,
            "found_targets": counts["found"] / groups,
            "kl": counts["divergence"] / candidates,
            "kl_tail": float(self.edges[place]),
        }
