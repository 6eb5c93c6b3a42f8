"""The loss of the item head: the target among all items, or among a sample of a large catalogue."""

import math

import torch
from torch.autograd import Function

from recbole_etegrec.losses.objective import ForwardPass, Objective

# Scores of targets with candidates that are held at once. A CPU is quicker with what its cache
# holds, a GPU with few large kernels.
_SCORES = {"cpu": 2**20}
_SCORES_OF_OTHERS = 2**24


def item_loss(
    query: torch.Tensor,
    vectors: torch.Tensor,
    own: torch.Tensor,
    ids: torch.Tensor,
    targets: torch.Tensor,
    *,
    share: float = 1.0,
    smoothing: float = 0.0,
    real: torch.Tensor | None = None,
) -> torch.Tensor:
    """Sum of the cross-entropy of targets over a catalogue, in nats; scores are dot products.

    ``log(exp s_i + 1/q sum_{j in S, j != i} exp s_j) - (1 - a) s_i - a mean_{j in S} s_j`` with
    the share ``q`` of the catalogue that is in the sample ``S`` and the smoothing ``a``: sampled
    softmax with the correction ``- log q`` (Bengio and Senecal, 2008), of which the sum over the
    catalogue is the expectation. With all items as candidates it is the full softmax.

    Memory grows with targets plus candidates, not with their product.

    Args:
        query: of each target ``[n, d]``.
        vectors: of the candidates ``[S, d]``.
        own: vectors of the targets ``[n, d]``.
        ids: of the candidates, ascending, none more than twice ``[S]``.
        targets: ids ``[n]``.
        share: of the catalogue that is in the sample.
        smoothing: of labels, over the catalogue.
        real: which targets count ``[n]``; None: all.
    """
    if real is not None:
        query = query * real.unsqueeze(1)  # so that padding teaches nothing
    first = torch.searchsorted(ids, targets).clamp_max(len(ids) - 1)
    places = torch.stack([first, (first + 1).clamp_max(len(ids) - 1)], dim=1)
    hits = ids[places] == targets.unsqueeze(1)
    return _ItemLoss.apply(query, vectors, own, places, hits, math.log(share), smoothing, real)


class _ItemLoss(Function):
    """Gradients are made with the loss, a few targets at a time, while their scores are there."""

    @staticmethod
    def forward(ctx, query, vectors, own, places, hits, log_share, smoothing, real):
        with torch.autocast(query.device.type, enabled=False):
            loss, *gradients = _loss_and_gradients(
                query, vectors, own, places, hits, log_share, smoothing, real
            )
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        gradients = (upstream * gradient for gradient in ctx.saved_tensors)
        return *gradients, None, None, None, None, None


def _loss_and_gradients(
    query: torch.Tensor,
    vectors: torch.Tensor,
    own: torch.Tensor,
    places: torch.Tensor,
    hits: torch.Tensor,
    log_share: float,
    smoothing: float,
    real: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss and its gradients by the first three arguments; see `item_loss`."""
    mean = vectors.mean(dim=0)
    own_score = (query * own).sum(dim=1)  # [n]
    loss = -(1 - smoothing) * own_score.sum() - smoothing * (query @ mean).sum()
    to_query, to_own = torch.empty_like(query), torch.empty_like(own)
    to_vectors = torch.zeros_like(vectors)
    rows = max(_SCORES.get(query.device.type, _SCORES_OF_OTHERS) // len(vectors), 1)
    for start in range(0, len(query), rows):
        part = slice(start, start + rows)
        scores = query[part] @ vectors.T  # [rows, S]
        for place, hit in zip(places[part].split(1, 1), hits[part].split(1, 1), strict=True):
            others = scores.gather(1, place).masked_fill(hit, -torch.inf)
            scores.scatter_(1, place, others)  # the target is no candidate of its own
        target = own_score[part] + log_share
        peak = torch.maximum(scores.amax(dim=1), target)
        scores.sub_(peak.unsqueeze(1)).exp_()
        target = (target - peak).exp()
        total = scores.sum(dim=1) + target
        each = total.log() + peak - log_share
        loss += (each if real is None else each * real[part]).sum()
        scale = query[part] / total.unsqueeze(1)
        to_vectors.addmm_(scores.T, scale)
        excess = (target / total - (1 - smoothing)).unsqueeze(1)
        to_query[part] = scores @ vectors / total.unsqueeze(1) + excess * own[part]
        to_own[part] = excess * query[part]
    to_query -= smoothing * mean
    to_vectors -= smoothing / len(vectors) * query.sum(dim=0)
    return loss, to_query, to_vectors, to_own


def _loss(forward: ForwardPass, item_smoothing: float) -> torch.Tensor:
    candidates = forward.candidates
    loss = item_loss(
        forward.item_query,
        forward.candidate_vectors,
        forward.target_vectors,
        candidates.ids,
        forward.batch.targets,
        share=candidates.share,
        smoothing=item_smoothing,
        real=forward.batch.real_targets,
    )
    return loss / forward.batch.step_targets


ITEM = Objective(
    _loss,
    needs={"item_query", "candidate_vectors", "target_vectors"},
    trains=("recommender",),
    title="Item loss",
    unit="nats",
    weight="item_weight",
    part="item_head",
    options=("item_smoothing",),
    reaches=("item query", "item projector", "free vectors", "item entry", "item content"),
)
