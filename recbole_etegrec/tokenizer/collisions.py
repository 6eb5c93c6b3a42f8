"""Spreading items that share all their semantic codes over the codes of the last level.

Source: LC-Rec (ICDE 2024), where the last level is balanced by optimal transport. Departures: only
items that collide move; what is balanced is the use of whole tuples, not of the last codes alone;
and a code may stay unused.
"""

from collections.abc import Callable, Iterator

import torch

from recbole_etegrec.tokenizer.item_codes import group_ids, rank_within

ROWS = 4096  # colliding items handled at once
_ROUNDS = 8  # of transport and of giving out places; what is left then takes what is left
_ITERATIONS = 100  # of Sinkhorn-Knopp
_TEMPERATURE = 0.02  # as a share of what an item pays, on average, for another code than its own


def spread_collisions(
    codes: torch.Tensor, code_num: int, distances_of: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """Give items that share all their semantic codes other codes at the last level.

    Among the items with the same codes before the last, those that collide share out the last
    codes that no other of them has, in the cheapest way in squared distance. Where there are as
    many codes as items, none collide any more; else no code gets more than an even share. Items
    that do not collide keep their codes.

    The last code of a moved item is not its nearest. The recommender learns the code that was
    given; the tokenizer's own loss and SIA do not see it, for they go by the nearest code and by
    the distribution over all codes.

    Args:
        codes: nearest codes ``[N, Q]``.
        code_num: codes a level ``C``.
        distances_of: rows ``[n]`` → squared distances of their last residuals to the last level's
            codes ``[n, C]``.

    Returns:
        ``[N, Q]``, on the device of ``codes``; found on the CPU, where sums have an order.
    """
    device, codes = codes.device, codes.cpu().clone()
    groups, prefixes = group_ids(codes, code_num), group_ids(codes[:, :-1], code_num)
    collides = torch.bincount(groups)[groups] > 1
    single, rows = torch.nonzero(~collides).squeeze(1), torch.nonzero(collides).squeeze(1)
    rows = rows[torch.sort(prefixes[rows], stable=True).indices]
    for block in _blocks(rows, prefixes[rows]):
        known, segments = torch.unique(prefixes[block], return_inverse=True)
        place = torch.full((int(prefixes.max()) + 1,), -1)
        place[known] = torch.arange(len(known))
        holders = single[place[prefixes[single]] >= 0]
        free = torch.ones(len(known), code_num, dtype=torch.long)
        free[place[prefixes[holders]], codes[holders, -1]] = 0
        members = torch.bincount(segments).unsqueeze(1)
        capacity = free * -(-members // free.sum(dim=1, keepdim=True))  # rounded up
        distances = distances_of(block.to(device)).cpu()
        codes[block, -1] = assign(distances, segments, capacity)
    return codes.to(device)


def assign(distances: torch.Tensor, segments: torch.Tensor, capacity: torch.Tensor) -> torch.Tensor:
    """Give each item a code, at most ``capacity`` items a code in each segment.

    Args:
        distances: what each code costs an item ``[n, C]``.
        segments: the segment of each item ``[n]``.
        capacity: of each code in each segment ``[S, C]``, enough for its items.

    Returns:
        ``[n]``; in total about as cheap as can be.
    """
    codes, capacity = torch.empty_like(segments), capacity.clone()
    left = torch.arange(len(segments))
    for _ in range(_ROUNDS):
        segment = segments[left]
        plan = transport_plan(distances[left], segment, capacity)
        # Of the items that want one code most, the r-th wishes for the r-th code of its own list.
        order = plan.argsort(dim=1, descending=True, stable=True)
        first = segment * plan.shape[1] + order[:, 0]
        turn = _rank_by(first, plan.amax(dim=1)) // capacity.flatten()[first].clamp_min(1)
        wish = order.gather(1, turn.clamp_max(plan.shape[1] - 1).unsqueeze(1))
        slot = segment * plan.shape[1] + wish.squeeze(1)
        gets = _rank_by(slot, plan.gather(1, wish).squeeze(1)) < capacity.flatten()[slot]
        codes[left[gets]] = wish[gets].squeeze(1)
        capacity -= torch.bincount(slot[gets], minlength=capacity.numel()).view_as(capacity)
        left = left[~gets]
        if len(left) == 0:
            return codes
    number = rank_within(segments[left]).unsqueeze(1)
    places = capacity.cumsum(dim=1)[segments[left]]
    codes[left] = torch.searchsorted(places, number, right=True).squeeze(1)
    return codes


def transport_plan(
    distances: torch.Tensor, segments: torch.Tensor, capacity: torch.Tensor
) -> torch.Tensor:
    """Sinkhorn-Knopp: the cheapest shares of items in codes, softened by their entropy.

    ``min_P sum P_ik d_ik - eps H(P)`` with ``sum_k P_ik = 1`` for each item and
    ``sum_i P_ik <= capacity_k`` for each code in each segment. Scaling rows to 1 and columns down
    to their capacity in turn leads there.

    Args:
        distances: ``[n, C]``.
        segments: ``[n]``.
        capacity: ``[S, C]``.

    Returns:
        ``log P`` ``[n, C]``; so codes too dear to have any share still have an order.
    """
    free = capacity[segments] > 0
    cost = distances.masked_fill(~free, torch.inf)
    cost = cost - cost.amin(dim=1, keepdim=True)
    paid = cost.masked_fill(~free, 0).sum(dim=1) / free.sum(dim=1)
    scale = torch.zeros(len(capacity)).index_add_(0, segments, paid)
    scale = scale / torch.bincount(segments, minlength=len(capacity)).clamp_min(1)
    cost /= (_TEMPERATURE * scale).clamp_min(1e-12)[segments].unsqueeze(1)
    limit = capacity.clamp_min(1).log()
    columns = torch.zeros(capacity.shape)  # logarithms of their scales
    for _ in range(_ITERATIONS):
        plan = torch.softmax(columns[segments] - cost, dim=1)
        load = torch.zeros(capacity.shape).index_add_(0, segments, plan)
        columns = (columns + limit - load.clamp_min(1e-30).log()).clamp_max(0)
    return torch.log_softmax(columns[segments] - cost, dim=1)


def _rank_by(slots: torch.Tensor, worth: torch.Tensor) -> torch.Tensor:
    """0, 1, 2, ... by falling worth ``[n]`` among the items of each slot ``[n]``."""
    order = worth.sort(descending=True, stable=True).indices
    order = order[slots[order].sort(stable=True).indices]
    rank = torch.empty_like(slots)
    rank[order] = rank_within(slots[order])
    return rank


def _blocks(rows: torch.Tensor, prefixes: torch.Tensor) -> Iterator[torch.Tensor]:
    """Rows in blocks of about ``ROWS``, no prefix in two of them; prefixes ascend."""
    ends = torch.nonzero(prefixes.diff()).squeeze(1) + 1
    start = 0
    while start < len(rows):
        later = ends[ends >= start + ROWS]
        end = int(later[0]) if len(later) else len(rows)
        yield rows[start:end]
        start = end
