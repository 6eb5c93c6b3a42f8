"""Beam search over the trie, with one cache a user.

The beams of a user are branches of one tree: their tokens enter the backbone side by side behind
the shared history, and a mask lets each see only its own ancestors. So the cache is never copied
per beam or reordered, and every beam is an item of the catalogue.
"""

from typing import NamedTuple

import torch

from recbole_etegrec.recommender import EncodedHistory, Recommender
from recbole_etegrec.tokenizer import Trie


class Ranking(NamedTuple):
    """Best items first.

    Attributes:
        items: ``[B, K]``.
        scores: ``log p(item | history)``, the sum over its codes, in nats ``[B, K]``.
    """

    items: torch.Tensor
    scores: torch.Tensor


class _Beams(NamedTuple):
    nodes: torch.Tensor  # [B, K] trie nodes
    codes: torch.Tensor  # [B, K] last code of each
    scores: torch.Tensor  # [B, K]
    parents: torch.Tensor  # [B, K] which beam of the step before


@torch.no_grad()
def beam_search(
    recommender: Recommender,
    trie: Trie,
    history: EncodedHistory,
    num_beams: int,
    excluded: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> Ranking:
    """The ``num_beams`` most probable items of each history, as far as a beam can tell.

    A beam of at least the catalogue's size is the exact ranking. Scores are normalised over all
    codes of a level, not only over those that the trie allows, so they are the same numbers as
    the recommendation loss and the exact ranking give.

    Args:
        history: encoded histories of ``B`` users; its cache grows and is not to be used again.
        num_beams: beams ``K``; fewer come back if the catalogue is smaller.
        excluded: distinct pairs of row and item ``[p]`` that no beam may reach. Where that leaves
            fewer than ``K`` items, the rest have item 0 and score -inf.
    """
    rows = len(history.state)
    root = torch.zeros(rows, 1, dtype=torch.long, device=history.state.device)
    beams = _Beams(root, root, torch.zeros_like(root, dtype=torch.float32), root)
    hidden = history.state.unsqueeze(1)  # [B, 1, H]
    sees = hidden.new_zeros(rows, 1, 0, dtype=torch.bool)
    for level in range(trie.depth):
        if level:
            width = beams.nodes.shape[1]
            own = torch.eye(width, dtype=torch.bool, device=hidden.device).expand(rows, -1, -1)
            earlier = sees.gather(1, beams.parents.unsqueeze(-1).expand(-1, -1, sees.shape[-1]))
            sees = torch.cat([earlier, own], dim=-1)  # [B, K, tokens beyond the history]
            embeddings = recommender.code_embedding.embed(beams.codes.unsqueeze(-1), level - 1)
            depth = torch.full((width,), level - 1, device=hidden.device)
            hidden = recommender.extend(history, embeddings.squeeze(2), depth, sees)
        beams = _expand(recommender, trie, level, hidden, beams, num_beams, excluded)
    items = trie.items[beams.nodes].masked_fill(beams.scores.isneginf(), 0)
    return Ranking(items, beams.scores)


def _expand(
    recommender: Recommender,
    trie: Trie,
    level: int,
    hidden: torch.Tensor,
    beams: _Beams,
    num_beams: int,
    excluded: tuple[torch.Tensor, torch.Tensor] | None,
) -> _Beams:
    """The best children of all beams of a user, in order."""
    rows, width = beams.nodes.shape
    states = hidden.flatten(0, 1).unsqueeze(1)  # [B * K, 1, H]
    logits = recommender.code_embedding.logits(states, slice(level, level + 1))
    log_probs = logits.squeeze(1).log_softmax(dim=-1).unflatten(0, (rows, width))  # [B, K, C]
    children = trie.children(level, beams.nodes)  # [B, K, W]
    exists = children.exists
    if excluded is not None:
        exists = exists & _has_items_left(trie, level + 1, children.nodes, excluded)
    scores = beams.scores.unsqueeze(-1) + log_probs.gather(-1, children.codes)
    scores = scores.masked_fill(~exists, -torch.inf).flatten(1)  # [B, K * W]
    keep = min(num_beams, trie.node_counts[level + 1], scores.shape[1])
    best = scores.topk(keep, dim=-1)
    return _Beams(
        children.nodes.flatten(1).gather(1, best.indices),
        children.codes.flatten(1).gather(1, best.indices),
        best.values,
        best.indices // children.codes.shape[-1],
    )


def _has_items_left(
    trie: Trie, depth: int, nodes: torch.Tensor, excluded: tuple[torch.Tensor, torch.Tensor]
) -> torch.Tensor:
    """Whether some item under each node ``[B, K, W]`` of a depth is not excluded in its row."""
    rows, items = excluded
    count = trie.node_counts[depth]
    under = rows * count + trie.nodes[depth][trie.leaf_of[items]]
    keys, taken = under.unique(return_counts=True)
    touched = (keys % count).int()
    begin, end = (torch.searchsorted(trie.nodes[depth], touched, right=r) for r in (False, True))
    emptied = keys[taken == end - begin]
    row = torch.arange(len(nodes), device=nodes.device).view(-1, 1, 1)
    return ~torch.isin(row * count + nodes, emptied)
