"""The recommendation loss ``L_REC``."""

import torch
from torch.nn import functional as F

from recbole_etegrec.losses.objective import ForwardPass, Objective


def recommendation_loss(logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the codes of each target ``[n]``, in nats a code.

    ``-1 / L sum_j log P(c_ij | history, c_i,<j)``; the paper's sum over the codes of a target is
    ``L`` times this.

    Args:
        logits: ``[n, L, C]``.
        codes: the targets' codes ``[n, L]``.
    """
    flat = F.cross_entropy(logits.float().flatten(0, 1), codes.flatten(), reduction="none")
    return flat.view_as(codes).mean(dim=1)


def _loss(forward: ForwardPass) -> torch.Tensor:
    return forward.mean_over_targets(recommendation_loss(forward.logits, forward.target_codes))


RECOMMENDATION = Objective(
    _loss,
    needs={"logits"},
    trains=("recommender",),
    title="Recommendation loss",
    unit="nats a code",
    reaches=(
        "codebooks, recommender's",
        "input projector",
        "output projector",
        "collision table",
        "user codes",
        "item entry",
        "backbone",
    ),
)
