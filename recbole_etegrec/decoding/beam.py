"""Beam search over the trie, with one cache a user.

The beams of a user are branches of one tree: their tokens enter the backbone side by side behind
the shared history, and a mask lets each see only its own ancestors. So the cache is never copied
per beam or reordered, and every beam is an item of the catalogue.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from recbole.data.interaction import Interaction
from torch.nn import functional as F

from recbole_etegrec.config import Config
from recbole_etegrec.data.seen_items import HistoryIndex
from recbole_etegrec.decoding.batch import BatchFields
from recbole_etegrec.decoding.ranker import Ranking, needs_all_scores
from recbole_etegrec.decoding.repeats import RepeatAwareRanker
from recbole_etegrec.decoding.sampling import TrieSampler
from recbole_etegrec.recommender import EncodedHistory, Recommender
from recbole_etegrec.tokenizer import ItemCodes, Trie


class BeamRanker(RepeatAwareRanker):
    """Ranks what a beam search finds, and nothing else.

    Args:
        num_beams: beams of a history, at least; with more, other items may be found.
    """

    keys = ("num_beams", *RepeatAwareRanker.keys)

    def __init__(
        self,
        recommender: Recommender,
        codes: ItemCodes,
        fields: BatchFields,
        *,
        num_beams: int,
        **of_repeats: Any,
    ):
        super().__init__(recommender, codes, fields, **of_repeats)
        self.num_beams = num_beams

    @staticmethod
    def rules(config: Config) -> Iterator[tuple[bool, str]]:
        """A beam must hold what is measured."""
        beams, largest = config["num_beams"], max(config["topk"])
        yield (
            beams < largest,
            f"num_beams ({beams}) must be >= max(topk) ({largest}): raise num_beams or lower topk",
        )
        yield needs_all_scores(config)

    def best(
        self, interaction: Interaction, k: int, excluded: HistoryIndex | None = None
    ) -> Ranking:
        """See :class:`Ranker`."""
        ranking = self._ranking(interaction, self.width(k), excluded)
        return Ranking(ranking.items[:, :k], ranking.scores[:, :k])

    def score_all(
        self, interaction: Interaction, excluded: HistoryIndex | None = None
    ) -> torch.Tensor:
        """See :class:`Ranker`; finite are the scores of ``num_beams`` items at most."""
        ranking = self._ranking(interaction, self.num_beams, excluded)
        shape = len(ranking.items), len(self.codes.table)
        scores = ranking.scores.new_full(shape, -torch.inf)
        return scores.scatter_(1, ranking.items, ranking.scores)

    def _ranking(
        self, interaction: Interaction, width: int, excluded: HistoryIndex | None
    ) -> Ranking:
        found = self._found_once(
            interaction, width, lambda: self.find(interaction, width, excluded)
        )
        return self._with_repeats(found, interaction)

    def width(self, k: int) -> int:
        """See :class:`Ranker`."""
        return max(k, self.num_beams)

    def search(
        self,
        history: EncodedHistory,
        width: int,
        excluded: HistoryIndex | None,
        *,
        whole: bool = False,
    ) -> Ranking:
        """See :class:`CodeRanker`; a beam has the same shapes whatever it finds."""
        before = history.cache.get_seq_length()
        ranking = beam_search(self.recommender, self.codes.trie, history, width, excluded)
        history.cache.crop(before - history.cache.get_seq_length())
        return ranking


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
    excluded: HistoryIndex | None = None,
    sampler: TrieSampler | None = None,
) -> Ranking:
    """The ``num_beams`` most probable items of each history, as far as a beam can tell.

    A beam of at least the catalogue's size is the exact ranking. Scores are normalised over all
    codes of a level, not only over those that the trie allows, so they are the same numbers as
    the recommendation loss and the exact ranking give.

    Args:
        history: encoded histories of ``B`` users; its cache grows and is not to be used again.
        num_beams: beams ``K``; fewer come back if the catalogue is smaller.
        excluded: distinct pairs of row and item ``[p]`` that no beam may reach, any number of them
            with item 0, which is none. Where that leaves fewer than ``K`` items, the rest have
            item 0 and score -inf.
        sampler: draws what is found, in place of the most probable items.
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
        beams = _expand(recommender, trie, level, hidden, beams, num_beams, excluded, sampler)
    if sampler is not None:
        order = beams.scores.argsort(dim=1, descending=True)
        beams = beams._replace(
            nodes=beams.nodes.gather(1, order), scores=beams.scores.gather(1, order)
        )
    items = trie.items[beams.nodes].masked_fill(beams.scores.isneginf(), 0)
    return Ranking(items, beams.scores)


def _expand(
    recommender: Recommender,
    trie: Trie,
    level: int,
    hidden: torch.Tensor,
    beams: _Beams,
    num_beams: int,
    excluded: HistoryIndex | None,
    sampler: TrieSampler | None,
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
    own = log_probs.gather(-1, children.codes)
    scores = beams.scores.unsqueeze(-1) + own
    scores = scores.masked_fill(~exists, -torch.inf).flatten(1)  # [B, K * W]
    keep, by = min(num_beams, trie.node_counts[level + 1], scores.shape[1]), scores
    if sampler is not None:
        by = sampler.scores(level, children, exists, own).flatten(1)
    best = by.topk(keep, dim=-1).indices
    if sampler is not None:
        sampler.keep(best)
    return _Beams(
        children.nodes.flatten(1).gather(1, best),
        children.codes.flatten(1).gather(1, best),
        scores.gather(1, best),
        best // children.codes.shape[-1],
    )


def _has_items_left(
    trie: Trie, depth: int, nodes: torch.Tensor, excluded: HistoryIndex
) -> torch.Tensor:
    """Whether some item under each node ``[B, K, W]`` of a depth is not excluded in its row.

    Shapes depend on those of the arguments alone, and nothing is read back from the device.
    """
    rows, items = excluded
    count, leaf = trie.node_counts[depth], trie.leaf_of[items]
    under = (rows * count + trie.nodes[depth][leaf]).masked_fill(leaf < 0, -1)
    keys = F.pad(under, (0, 1), value=-1).sort().values  # one for each excluded item, and one more
    taken = _count(keys, keys)
    emptied = (taken == _count(trie.nodes[depth], (keys % count).int())) & (keys >= 0)
    row = torch.arange(len(nodes), device=nodes.device).view(-1, 1, 1)
    wanted = row * count + nodes
    place = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return ~((keys[place] == wanted) & emptied[place])


def _count(ordered: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """How often each of some values is among others, which are in order."""
    begin, end = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return end - begin
