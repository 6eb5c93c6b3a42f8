"""The two alignment losses that tie tokenizer and recommender.

Source: ETEGRec (SIGIR 2025), Eq. 14-16. Departures from the printed formulas: both of the paper's
stray signs are mended (the text asks for similar distributions, and for a contrastive loss).
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F


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


def preference_semantic_alignment(
    preference: torch.Tensor,
    reconstruction: torch.Tensor,
    item_index: torch.Tensor,
    temperature: float,
    logsumexp_over_processes: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """PSA: symmetric InfoNCE between preference latents and reconstructed targets ``[n]``, in nats.

    Cosine similarity; the negatives are the other distinct targets of the step one way, and the
    latents of other targets the other way. Two latents of one target are never negatives.

    Args:
        preference: latents before each target ``[n, d_z]``.
        reconstruction: reconstructed embeddings of the distinct targets ``[U, d_z]``.
        item_index: the row of each target in ``reconstruction`` ``[n]``.
        temperature: divides the cosine.
        logsumexp_over_processes: combines ``[U]`` of this process with those of the others, which
            see other targets of the same step, with the gradient kept; so negatives come from all.
    """
    preference = F.normalize(preference.float(), dim=-1)
    reconstruction = F.normalize(reconstruction.float(), dim=-1)
    similarity = preference @ reconstruction.T / temperature  # [n, U]
    to_item = F.cross_entropy(similarity, item_index, reduction="none")
    own = similarity.gather(1, item_index.unsqueeze(1)).squeeze(1)  # [n]
    rows = torch.arange(similarity.shape[1], device=similarity.device)
    positive = item_index.unsqueeze(1) == rows
    # A lowest number, not -inf: a target shared by all rows has no negative, and no NaN either.
    lowest = torch.finfo(similarity.dtype).min
    others = similarity.masked_fill(positive, lowest).logsumexp(dim=0)  # [U]
    if logsumexp_over_processes is not None:
        others = logsumexp_over_processes(others)
    to_preference = torch.logaddexp(own, others.index_select(0, item_index)) - own
    return (to_item + to_preference) / 2
