"""Preference-semantic alignment (PSA): a user's preference resembles the target it precedes.

Source: ETEGRec (SIGIR 2025), Eq. 16. Departure from the printed formula: its stray sign is mended,
for the text asks for a contrastive loss. UniGRec (2026) has the same loss with the items'
embeddings, which stay as they are, in the place of the tokenizer's reconstructions: it then trains
the recommender alone, and does not end with the tokenizer's training.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from recbole_etegrec.losses.objective import ForwardPass, Objective


def preference_semantic_alignment(
    preference: torch.Tensor,
    reconstruction: torch.Tensor,
    item_index: torch.Tensor,
    temperature: float,
    logsumexp_over_processes: Callable[[torch.Tensor], torch.Tensor] | None = None,
    real_targets: torch.Tensor | None = None,
    real_items: torch.Tensor | None = None,
) -> torch.Tensor:
    """PSA: symmetric InfoNCE between preference latents and reconstructed targets ``[n]``, in nats.

    The sum of its two directions. Cosine similarity; the negatives are the other distinct targets
    of the step one way, and the latents of other targets the other way. Two latents of one target
    are never negatives.

    Args:
        preference: latents before each target ``[n, d_z]``.
        reconstruction: reconstructed embeddings of the distinct targets ``[U, d_z]``.
        item_index: the row of each target in ``reconstruction`` ``[n]``.
        temperature: divides the cosine.
        logsumexp_over_processes: combines ``[U]`` of this process with those of the others, which
            see other targets of the same step, with the gradient kept; so negatives come from all.
        real_targets: which of the latents ``[n]`` are negatives too; None for all.
        real_items: which of the reconstructions ``[U]`` are; None for all.
    """
    preference = F.normalize(preference.float(), dim=-1)
    reconstruction = F.normalize(reconstruction.float(), dim=-1)
    similarity = preference @ reconstruction.T / temperature  # [n, U]
    # A lowest number, not -inf: a target shared by all rows has no negative, and no NaN either.
    lowest = torch.finfo(similarity.dtype).min
    if real_items is not None:
        similarity = similarity.masked_fill(~real_items, lowest)
    to_item = F.cross_entropy(similarity, item_index, reduction="none")
    own = similarity.gather(1, item_index.unsqueeze(1)).squeeze(1)  # [n]
    rows = torch.arange(similarity.shape[1], device=similarity.device)
    positive = item_index.unsqueeze(1) == rows
    if real_targets is not None:
        positive = positive | ~real_targets.unsqueeze(1)
    others = similarity.masked_fill(positive, lowest).logsumexp(dim=0)  # [U]
    if logsumexp_over_processes is not None:
        others = logsumexp_over_processes(others)
    to_preference = torch.logaddexp(own, others.index_select(0, item_index)) - own
    return to_item + to_preference


def _against(vectors: torch.Tensor, forward: ForwardPass, temperature: float) -> torch.Tensor:
    loss = preference_semantic_alignment(
        forward.preference_latent,
        vectors,
        forward.batch.distinct_index,
        temperature,
        forward.logsumexp_over_processes,
        forward.batch.real_targets,
        forward.batch.real_distinct,
    )
    return forward.mean_over_targets(loss)


def _loss(forward: ForwardPass, psa_temperature: float) -> torch.Tensor:
    return _against(forward.items.reconstruction, forward, psa_temperature)


def _fixed_loss(forward: ForwardPass, psa_temperature: float) -> torch.Tensor:
    return _against(forward.embeddings, forward, psa_temperature)


PSA = Objective(
    _loss,
    needs={"preference_latent", "items"},
    trains=("tokenizer", "recommender"),
    title="Preference-semantic alignment (PSA)",
    unit="nats",
    weight="psa_weight",
    aligned=True,
    options=("psa_temperature",),
    reaches=("PSA adapter",),
)

PSA_FIXED = Objective(
    _fixed_loss,
    needs={"preference_latent", "embeddings"},
    trains=("recommender",),
    title="PSA against item embeddings",
    unit="nats",
    weight="psa_fixed_weight",
    options=("psa_temperature",),
    reaches=("PSA adapter",),
)
