"""What a model learns of candidates of which some are better than others: GRPO and DPO.

Both read log-probabilities of the candidates' codes under the model that learns and under a fixed
reference, the model of before.
"""

import torch
from torch.nn import functional as F

from recbole_etegrec.data import Group
from recbole_etegrec.losses.objective import ForwardPass, Objective

_REACHES = (
    "codebooks, recommender's",
    "input projector",
    "output projector",
    "collision table",
    "backbone",
)


def divergence(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """``exp(r) - r - 1`` with ``r = reference - log_probs``: 0 where they agree, else above 0.

    Over samples of the model its mean is ``KL(model || reference)`` in nats (Schulman, 2020).
    """
    ratio = reference - log_probs
    return ratio.exp() - ratio - 1


def grpo_loss(
    log_probs: torch.Tensor,
    reference: torch.Tensor,
    advantages: torch.Tensor,
    there: torch.Tensor,
    kl_weight: float,
) -> torch.Tensor:
    """Group relative policy optimisation (Shao et al., 2024), in nats a code ``[B]``.

    ``-1 / K sum_k A_k mean_j log p_kj + b / K sum_k mean_j divergence_kj``. Each group serves one
    step, so the ratio of the new policy to the sampling one is 1, and is left out: the gradient is
    the same.

    Args:
        log_probs: of the candidates' codes ``[B, K, L]``.
        reference: the same by the model of before.
        advantages: of the candidates, of mean 0 in a group ``[B, K]``.
        there: which candidates there are ``[B, K]``.
        kl_weight: the weight ``b``.
    """
    away = divergence(log_probs, reference).mean(dim=2)
    each = kl_weight * away - advantages * log_probs.mean(dim=2)
    return each.masked_fill(~there, 0.0).sum(dim=1) / there.sum(dim=1).clamp_min(1)


def dpo_loss(
    log_probs: torch.Tensor, reference: torch.Tensor, advantages: torch.Tensor, beta: float
) -> torch.Tensor:
    """Direct preference optimisation with several negatives (S-DPO, Chen et al., 2024) ``[B]``.

    ``log(1 + sum_d exp(m_d - m_p))`` with ``m = beta (log p - log p_reference)`` of whole items,
    the preferred ``p`` and those ``d`` that are not; ``log(1 + number of d)`` where nothing has
    moved. A group in which either is missing gives 0.

    Args:
        log_probs: of the candidates' codes ``[B, K, L]``.
        reference: the same by the model of before.
        advantages: above 0 of the one that is preferred, below 0 of the others ``[B, K]``.
        beta: how little the model is held to the reference.
    """
    margin = beta * (log_probs - reference).sum(dim=2)
    preferred = margin.masked_fill(advantages <= 0, 0.0).sum(dim=1, keepdim=True)
    others = (margin - preferred).masked_fill(advantages >= 0, -torch.inf)
    whole = (advantages > 0).any(dim=1) & (advantages < 0).any(dim=1)
    others = others.masked_fill(~whole.unsqueeze(1), 0.0)  # no NaN, and no gradient
    return F.softplus(others.logsumexp(dim=1)).masked_fill(~whole, 0.0)


def _mean(group: Group, loss: torch.Tensor) -> torch.Tensor:
    """This micro-batch's share of the mean over groups of a loss ``[B]``."""
    return loss.masked_fill(~group.real, 0.0).sum() / group.each_step


def _grpo(forward: ForwardPass, preference_kl: float) -> torch.Tensor:
    group = forward.batch.group
    loss = grpo_loss(
        forward.branch_log_probs, group.reference, group.advantages, group.items > 0, preference_kl
    )
    return _mean(group, loss)


def _dpo(forward: ForwardPass, preference_beta: float) -> torch.Tensor:
    group = forward.batch.group
    loss = dpo_loss(forward.branch_log_probs, group.reference, group.advantages, preference_beta)
    return _mean(group, loss)


GRPO = Objective(
    _grpo,
    needs={"branch_log_probs"},
    trains=("recommender",),
    title="GRPO",
    unit="nats a code",
    options=("preference_kl",),
    reaches=_REACHES,
)

DPO = Objective(
    _dpo,
    needs={"branch_log_probs"},
    trains=("recommender",),
    title="DPO",
    unit="nats",
    options=("preference_beta",),
    reaches=_REACHES,
)
