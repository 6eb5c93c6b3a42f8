"""Sequence-item alignment (SIA): tokenizer and recommender agree on the codes of a target.

Source: ETEGRec (SIGIR 2025), Eq. 14-15. Departure from the printed formula: its stray sign is
mended, for the text asks for similar distributions.
"""

import torch

from recbole_etegrec.losses.objective import ForwardPass, Objective


def sequence_item_alignment(
    item_log_probs: torch.Tensor, sequence_log_probs: torch.Tensor, item_index: torch.Tensor
) -> torch.Tensor:
    """SIA: symmetric KL between the code distributions of a target and of its history.

    ``sum_l KL(P_z^l || P_s^l) + KL(P_s^l || P_z^l)`` of each target ``[n]``, in nats.

    Args:
        item_log_probs: of the distinct targets ``[U, Q, C]``.
        sequence_log_probs: of the states before each target ``[n, Q, C]``.
        item_index: the row of each target in ``item_log_probs`` ``[n]``.
    """
    item = item_log_probs.float().index_select(0, item_index)
    sequence = sequence_log_probs.float()
    # KL(p||q) + KL(q||p) = sum (p - q)(log p - log q)
    divergence = (item.exp() - sequence.exp()) * (item - sequence)
    return divergence.sum(dim=(1, 2))


def _loss(forward: ForwardPass) -> torch.Tensor:
    loss = sequence_item_alignment(
        forward.items.quantization.log_probabilities(),
        forward.sequence.log_probabilities(),
        forward.batch.distinct_index,
    )
    return forward.mean_over_targets(loss)


SIA = Objective(
    _loss,
    needs={"items", "sequence"},
    trains=("tokenizer", "recommender"),
    title="Sequence-item alignment (SIA)",
    unit="nats",
    weight="sia_weight",
    aligned=True,
    reaches=("SIA adapter",),
)
