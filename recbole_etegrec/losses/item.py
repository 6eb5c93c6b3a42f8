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
    seen: torch.Tensor | None = None,
    repeat_bonus: torch.Tensor | None = None,
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
        seen: distinct ids of items before each target, and 0 ``[n, W]``; given with the next.
        repeat_bonus: what the scores of these get on top ``[1]``.
    """
    real = torch.ones_like(targets, dtype=torch.bool) if real is None else real
    query = query * real.unsqueeze(1)  # so that padding teaches nothing
    if seen is None:
        seen, repeat_bonus = targets.new_zeros(len(targets), 0), query.new_zeros(1)
    case = _Case(
        own=own,
        hits=_Places.find(ids, targets.unsqueeze(1)),
        seen=_Places.find(ids, seen, real.unsqueeze(1) & (seen > 0)),
        repeats=(real.unsqueeze(1) & (seen == targets.unsqueeze(1))).any(dim=1, keepdim=True),
        real=real.unsqueeze(1),
        count=len(ids),
        log_share=math.log(share),
        smoothing=smoothing,
    )
    return _ItemLoss.apply(query, vectors, repeat_bonus, case)


class _Places(NamedTuple):
    """Where some items of each target are among the candidates, at two places at most.

    Attributes:
        places: of candidates ``[2, n, W]``.
        there: whether the item is there ``[2, n, W]``.
    """

    places: torch.Tensor
    there: torch.Tensor

    @classmethod
    def find(
        cls, ids: torch.Tensor, items: torch.Tensor, wanted: torch.Tensor | bool = True
    ) -> "_Places":
        """Where items ``[n, W]`` are among ascending ids; those that are not wanted are nowhere."""
        first = torch.searchsorted(ids, items).clamp_max(len(ids) - 1)
        places = torch.stack([first, (first + 1).clamp_max(len(ids) - 1)])
        there = (ids[places] == items) & wanted
        there[1] &= places[1] > first
        return cls(places, there)

    def leave_out(self, scores: torch.Tensor, part: slice) -> None:
        """Let the items of a part of the targets be no candidates, by scores ``[rows, S]``."""
        for places, there in zip(self.places[:, part], self.there[:, part], strict=True):
            scores.scatter_(1, places, scores.gather(1, places).masked_fill(there, -torch.inf))

    def add(self, bonus: torch.Tensor, scores: torch.Tensor, part: slice) -> None:
        """Add a bonus ``[1]`` to the scores of the items of a part of the targets."""
        for places, there in zip(self.places[:, part], self.there[:, part], strict=True):
            scores.scatter_add_(1, places, there * bonus)

    def total(self, values: torch.Tensor, part: slice) -> torch.Tensor:
        """Sums over the items of a part of the targets ``[rows, 1]``, of values ``[rows, S]``."""
        found = (
            (values.gather(1, places) * there).sum(dim=1, keepdim=True)
            for places, there in zip(self.places[:, part], self.there[:, part], strict=True)
        )
        return sum(found)


class _Case(NamedTuple):
    """What a loss is of besides tensors that learn.

    Attributes:
        own: which of the vectors are the targets' ``[n]``.
        hits: where the targets are among the candidates.
        seen: where the items of histories are among them.
        repeats: whether the target is an item of its history ``[n, 1]``.
        real: which targets count ``[n, 1]``.
        count: candidates.
        log_share: of the catalogue, in nats.
        smoothing: of labels.
    """

    own: torch.Tensor
    hits: _Places
    seen: _Places
    repeats: torch.Tensor
    real: torch.Tensor
    count: int
    log_share: float
    smoothing: float


class _ItemLoss(Function):
    """Gradients are made with the loss, a few targets at a time, while their scores are there."""

    @staticmethod
    def forward(ctx, query, vectors, repeat_bonus, case):
        with torch.autocast(query.device.type, enabled=False):
            loss, *gradients = _loss_and_gradients(query, vectors, repeat_bonus, case)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx, upstream):
        return *(upstream * gradient for gradient in ctx.saved_tensors), None


def _loss_and_gradients(
    query: torch.Tensor, vectors: torch.Tensor, bonus: torch.Tensor, case: _Case
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss and its gradients by the first three arguments; see `item_loss`."""
    count, smoothing, log_share = case.count, case.smoothing, case.log_share
    candidates, targets = vectors[-count:], vectors[case.own]
    mean, seen_share = candidates.mean(dim=0), smoothing / count * case.seen.there.sum()
    own_score = (query * targets).sum(dim=1, keepdim=True) + bonus * case.repeats  # [n, 1]
    loss = -(1 - smoothing) * own_score.sum() - smoothing * (query @ mean).sum()
    loss -= bonus[0] * seen_share
    to_query, to_own, to_bonus = torch.empty_like(query), torch.empty_like(query), -seen_share
    to_vectors = torch.empty_like(vectors)
    to_vectors[:-count] = 0
    to_vectors[-count:] = -smoothing / count * query.sum(dim=0)
    rows = _SCORES.get(query.device.type, _SCORES_OF_OTHERS) // count
    rows = min(rows // _MULTIPLE * _MULTIPLE or max(rows, 1), len(query))
    room = query.new_empty(rows, count)  # the same for all parts: fresh memory costs time
    for start in range(0, len(query), rows or 1):
        part = slice(start, start + rows)
        scores = torch.mm(query[part], candidates.T, out=room[: len(query[part])])
        case.seen.add(bonus, scores, part)
        case.hits.leave_out(scores, part)
        target = own_score[part] + log_share  # [rows, 1]
        peak = torch.maximum(scores.amax(dim=1, keepdim=True), target)
        scores.sub_(peak).exp_()
        target = (target - peak).exp()
        total = scores.sum(dim=1, keepdim=True) + target
        loss += ((total.log() + peak - log_share) * case.real[part]).sum()
        to_vectors[-count:].addmm_(scores.T, query[part] / total)
        excess = target / total - (1 - smoothing)
        to_query[part] = scores @ candidates / total + excess * targets[part]
        to_own[part] = excess * query[part]
        seen = case.seen.total(scores, part) / total + excess * case.repeats[part]
        to_bonus += seen.sum()
    to_query -= smoothing * mean
    return loss, to_query, to_vectors.index_add_(0, case.own, to_own), to_bonus.view(1)


def _loss(forward: ForwardPass, item_smoothing: float) -> torch.Tensor:
    """The mean of what the readers lose by their own scores, so that each learns to rank alone."""
    candidates, readers = forward.candidates, forward.item_query
    parts = forward.item_vectors.chunk(len(readers), dim=1)
    loss = sum(
        item_loss(
            query,
            vectors,
            candidates.places_of(forward.batch.targets),
            candidates.ids,
            forward.batch.targets,
            share=candidates.share,
            smoothing=item_smoothing,
            real=forward.batch.real_targets,
            seen=forward.item_seen,
            repeat_bonus=forward.repeat_bonus,
        )
        for query, vectors in zip(readers, parts, strict=True)
    )
    return loss / len(readers) / forward.batch.divisor


ITEM = Objective(
    _loss,
    needs={"item_query", "item_vectors", "item_seen", "repeat_bonus"},
    trains=("recommender",),
    title="Item loss",
    unit="nats",
    weight="item_weight",
    part="item_head",
    options=("item_smoothing",),
    reaches=(
        "item query",
        "item projector",
        "free vectors",
        "item entry",
        "item content",
        "item repeats",
        "item decoder",
    ),
)
