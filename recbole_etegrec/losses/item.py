"""The loss of the item head: the target among all items, or among a sample of a large catalogue."""

import math
from typing import NamedTuple

import torch
from torch.autograd import Function

from recbole_etegrec.losses.objective import ForwardPass, Objective

# Scores of targets with candidates that are held at once. A CPU is quicker with what its cache
# holds, a GPU with few large kernels.
_SCORES = {"cpu": 2**21}
_SCORES_OF_OTHERS = 2**24
_MULTIPLE = 32  # of so many targets at once, which matrix products like


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
        vectors: of items ``[M, d]``, those of the candidates last.
        own: which of the vectors are the targets' ``[n]``.
        ids: of the candidates, ascending, none more than twice ``[S]``.
        targets: ids ``[n]``.
        share: of the catalogue that is in the sample.
        smoothing: of labels, over the catalogue.
        real: which targets count ``[n]``; None: all.
    """
    if real is not None:
        query = query * real.unsqueeze(1)  # so that padding teaches nothing
    first = torch.searchsorted(ids, targets).clamp_max(len(ids) - 1)
    places = torch.stack([first, (first + 1).clamp_max(len(ids) - 1)])
    hits = _Hits(places.unsqueeze(2), (ids[places] == targets).unsqueeze(2))
    return _ItemLoss.apply(query, vectors, own, hits, len(ids), math.log(share), smoothing, real)


class _Hits(NamedTuple):
    """Where each target may be among the candidates, which it is at two places at most.

    Attributes:
        places: of candidates ``[2, n, 1]``.
        there: whether the target is there ``[2, n, 1]``.
    """

    places: torch.Tensor
    there: torch.Tensor

    def leave_out(self, scores: torch.Tensor, part: slice) -> None:
        """Let no target of a part be a candidate of its own, by its scores ``[rows, S]``."""
        for places, there in zip(self.places[:, part], self.there[:, part], strict=True):
            scores.scatter_(1, places, scores.gather(1, places).masked_fill(there, -torch.inf))


class _ItemLoss(Function):
    """Gradients are made with the loss, a few targets at a time, while their scores are there."""

    @staticmethod
    def forward(ctx, query, vectors, own, hits, count, log_share, smoothing, real):
        with torch.autocast(query.device.type, enabled=False):
            loss, *gradients = _loss_and_gradients(
                query, vectors, own, hits, count, log_share, smoothing, real
            )
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        gradients = (upstream * gradient for gradient in ctx.saved_tensors)
        return *gradients, None, None, None, None, None, None


def _loss_and_gradients(
    query: torch.Tensor,
    vectors: torch.Tensor,
    own: torch.Tensor,
    hits: _Hits,
    count: int,
    log_share: float,
    smoothing: float,
    real: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss and its gradients by the first two arguments; see `item_loss`."""
    candidates, targets = vectors[-count:], vectors[own]
    mean = candidates.mean(dim=0)
    own_score = (query * targets).sum(dim=1, keepdim=True)  # [n, 1]
    loss = -(1 - smoothing) * own_score.sum() - smoothing * (query @ mean).sum()
    to_query, to_own = torch.empty_like(query), torch.empty_like(query)
    to_vectors = torch.empty_like(vectors)
    to_vectors[:-count] = 0
    to_vectors[-count:] = -smoothing / count * query.sum(dim=0)
    rows = _SCORES.get(query.device.type, _SCORES_OF_OTHERS) // count
    rows = min(rows // _MULTIPLE * _MULTIPLE or max(rows, 1), len(query))
    room = query.new_empty(rows, count)  # the same for all parts: fresh memory costs time
    for start in range(0, len(query), rows or 1):
        part = slice(start, start + rows)
        scores = torch.mm(query[part], candidates.T, out=room[: len(query[part])])
        hits.leave_out(scores, part)
        target = own_score[part] + log_share  # [rows, 1]
        peak = torch.maximum(scores.amax(dim=1, keepdim=True), target)
        scores.sub_(peak).exp_()
        target = (target - peak).exp()
        total = scores.sum(dim=1, keepdim=True) + target
        each = total.log() + peak - log_share
        loss += (each if real is None else each * real[part].unsqueeze(1)).sum()
        to_vectors[-count:].addmm_(scores.T, query[part] / total)
        excess = target / total - (1 - smoothing)
        to_query[part] = scores @ candidates / total + excess * targets[part]
        to_own[part] = excess * query[part]
    to_query -= smoothing * mean
    return loss, to_query, to_vectors.index_add_(0, own, to_own)


def _loss(forward: ForwardPass, item_smoothing: float) -> torch.Tensor:
    candidates = forward.candidates
    loss = item_loss(
        forward.item_query,
        forward.item_vectors,
        candidates.places_of(forward.batch.targets),
        candidates.ids,
        forward.batch.targets,
        share=candidates.share,
        smoothing=item_smoothing,
        real=forward.batch.real_targets,
    )
    return loss / forward.batch.divisor


ITEM = Objective(
    _loss,
    needs={"item_query", "item_vectors"},
    trains=("recommender",),
    title="Item loss",
    unit="nats",
    weight="item_weight",
    part="item_head",
    options=("item_smoothing",),
    reaches=("item query", "item projector", "free vectors", "item entry", "item content"),
)
