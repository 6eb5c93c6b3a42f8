"""What a model learns from the scores of another, or of several: of each target's candidates.

Distillation (Hinton et al., 2015) over the items that the teacher proposes after a history, by the
item head and by the codes.
"""

import torch

from recbole_etegrec.losses.objective import ForwardPass, Objective
from recbole_etegrec.recommender.item_head import joined
from recbole_etegrec.recommender.repeats import among

_NEVER = -1e4  # the score of padding; finite, for a row of padding alone must give no NaN


def distillation_loss(
    query: torch.Tensor,
    vectors: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
    bonus: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """``T^2 KL(p || q)`` over candidates, in nats ``[n]``; scores are dot products.

    ``p = softmax(teacher / T)`` and ``q = softmax(query . vectors / T)``, both over the candidates
    alone; ``T^2`` keeps gradients of one size, whatever the temperature.

    Args:
        query: of each target ``[n, d]``.
        vectors: of its candidates ``[n, K, d]``.
        teacher: log-probabilities of the candidates, -inf of those that are none ``[n, K]``.
        temperature: above 0.
        bonus: what scores have on top ``[n, K]``.
    """
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.einsum("nd,nkd->nk", query.float(), vectors.float()) + bonus
    none = teacher.isneginf()
    ours, theirs = (
        (values.float() / temperature).masked_fill(none, _NEVER).log_softmax(dim=1)
        for values in (scores, teacher)
    )
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(dim=1)


def code_distillation_loss(
    logits: torch.Tensor,
    target_codes: torch.Tensor,
    codes: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """What is known of the teacher's cross-entropy with the model, in nats a code ``[n]``.

    ``-1 / L sum_j sum_k p_k log P(c_kj | history, c_k,<j)`` over the candidates ``k`` and those of
    their codes that follow codes of the target alone, for no other prefix is read in training.

    Args:
        logits: of the targets' codes ``[n, L, C]``.
        target_codes: ``[n, L]``.
        codes: of the candidates ``[n, K, L]``.
        teacher: as :func:`distillation_loss` has it.
        temperature: of the teacher alone.
    """
    none = teacher.isneginf()
    weights = (teacher.float() / temperature).masked_fill(none, _NEVER).softmax(dim=1)  # [n, K]
    same = (codes == target_codes.unsqueeze(1)).long().cumprod(dim=2)
    follows = torch.cat([torch.ones_like(same[..., :1]), same[..., :-1]], dim=2)  # [n, K, L]
    log_probs = logits.float().log_softmax(dim=2)
    each = log_probs.gather(2, codes.transpose(1, 2)).transpose(1, 2)  # [n, K, L]
    return -(weights.unsqueeze(2) * follows * each).sum(dim=1).mean(dim=1)


def _loss(forward: ForwardPass, distill_temperature: float) -> torch.Tensor:
    bonus = 0.0
    if forward.item_seen is not None:
        bonus = forward.repeat_bonus * among(forward.batch.taught_items, forward.item_seen)
    loss = distillation_loss(
        joined(forward.item_query),
        forward.taught_vectors,
        forward.batch.taught_scores,
        distill_temperature,
        bonus,
    )
    return forward.mean_over_targets(loss)


def _code_loss(forward: ForwardPass, distill_temperature: float) -> torch.Tensor:
    loss = code_distillation_loss(
        forward.logits,
        forward.target_codes,
        forward.taught_codes,
        forward.batch.taught_scores,
        distill_temperature,
    )
    return forward.mean_over_targets(loss)


DISTILLATION = Objective(
    _loss,
    needs={"item_query", "taught_vectors", "item_seen", "repeat_bonus"},
    trains=("recommender",),
    title="Distillation",
    unit="nats",
    weight="distill_weight",
    part="distill_from",
    options=("distill_temperature",),
    reaches=("item query", "item projector", "free vectors", "item repeats"),
)

CODE_DISTILLATION = Objective(
    _code_loss,
    needs={"logits", "taught_codes"},
    trains=("recommender",),
    title="Distillation of codes",
    unit="nats a code",
    weight="distill_codes_weight",
    part="distill_from",
    options=("distill_temperature",),
    reaches=("codebooks, recommender's", "input projector", "output projector", "backbone"),
)
