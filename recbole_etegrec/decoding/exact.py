"""Exact ranking: the log-probability of every item of the catalogue.

The oracle of the beam, and full-sort evaluation in RecBole's own sense. The trie is walked in
chunks of neighbouring items; each distinct prefix in a chunk is one token behind the shared
history, so work grows with the nodes of the trie, not with items times codes.
"""

from typing import NamedTuple

import torch
from recbole.data.interaction import Interaction

from recbole_etegrec.data.seen_items import HistoryIndex
from recbole_etegrec.decoding.ranker import Ranking
from recbole_etegrec.decoding.repeats import RepeatAwareRanker
from recbole_etegrec.recommender import EncodedHistory, Recommender
from recbole_etegrec.tokenizer import Trie


class ExactRanker(RepeatAwareRanker):
    """Ranks all items, by scores that are those of the recommender to rounding."""

    _scores: "ExactScores | None" = None

    def best(
        self, interaction: Interaction, k: int, excluded: HistoryIndex | None = None
    ) -> Ranking:
        """See :class:`Ranker`."""
        scores = self.score_all(interaction, excluded)
        scores, items = scores.topk(min(k, self.width(k)))
        return Ranking(items.masked_fill(scores.isneginf(), 0), scores)

    def score_all(
        self, interaction: Interaction, excluded: HistoryIndex | None = None
    ) -> torch.Tensor:
        """See :class:`Ranker`."""
        scores = self._found_once(interaction, 0, lambda: self._by_codes(interaction, excluded))
        if not self.repeat_score:
            return scores
        history = interaction[self.fields.history].to(scores.device)
        again = torch.zeros_like(scores).scatter_(1, history, self.repeat_score)
        return scores + again

    def _by_codes(self, interaction: Interaction, excluded: HistoryIndex | None) -> torch.Tensor:
        self.prepare()
        scores = self._scores(self.encode(interaction))
        if excluded is not None:
            scores[self.on_device(excluded)] = -torch.inf
        return scores

    def width(self, k: int) -> int:
        """All items, whatever ``k`` is."""
        return len(self.codes.table) - 1

    def rehearse(self, interaction: Interaction) -> None:
        """See :class:`Ranker`; one chunk takes as much as all of them, one after another."""
        self.prepare()
        largest = max(self._scores.chunks, key=lambda chunk: len(chunk.node_codes))
        self._scores(self.encode(interaction), [largest])

    def prepare(self) -> None:
        """See :class:`Ranker`; the trie is cut into chunks."""
        if self._scores is None or self._scores.trie is not self.codes.trie:
            self._scores = ExactScores(self.recommender, self.codes.trie)


class _Chunk(NamedTuple):
    """A run of leaves and the ``m`` inner nodes above them, the root not counted."""

    items: torch.Tensor  # [n] item ids
    codes: torch.Tensor  # [n, L] their codes
    path: list[torch.Tensor]  # per depth 1 .. L-1: which of that depth's nodes, [n]
    depths: list[slice]  # per depth 1 .. L-1: its nodes among the m
    node_codes: torch.Tensor  # [m] last code of each node
    node_levels: torch.Tensor  # [m] level of that code
    sees: torch.Tensor  # [1, m, m] a node sees its ancestors and itself


class ExactScores:
    """Scores every item, for one recommender and one trie.

    Args:
        chunk_items: leaves walked at once; memory grows with users times this.
    """

    def __init__(self, recommender: Recommender, trie: Trie, chunk_items: int = 128):
        self.recommender, self.trie = recommender, trie
        self.chunks = [
            _make_chunk(trie, slice(start, start + chunk_items))
            for start in range(0, len(trie), chunk_items)
        ]

    @torch.no_grad()
    def __call__(self, history: EncodedHistory, chunks: list[_Chunk] | None = None) -> torch.Tensor:
        """Scores ``[B, n_items]`` in nats, indexed by item id; -inf where it is not in the trie.

        Args:
            history: its cache is left as it was.
            chunks: those wanted of ``chunks``; none: all.
        """
        state = history.state
        scores = torch.full((len(state), self.trie.n_items), -torch.inf, device=state.device)
        for chunk in self.chunks if chunks is None else chunks:
            scores[:, chunk.items] = self._score_chunk(history, chunk)
        return scores

    def _score_chunk(self, history: EncodedHistory, chunk: _Chunk) -> torch.Tensor:
        """Scores of its items ``[B, n]``."""
        embedding = self.recommender.code_embedding
        rows = embedding.tables()[chunk.node_levels, chunk.node_codes]
        tokens = embedding.scid_projector(rows).float().expand(len(history.state), -1, -1)
        hidden = self.recommender.extend(history, tokens, chunk.node_levels, chunk.sees)
        history.cache.crop(-tokens.shape[1])
        total = self._log_probs(history.state.unsqueeze(1), 0)[:, 0, chunk.codes[:, 0]]
        for level, (nodes, depth) in enumerate(zip(chunk.path, chunk.depths, strict=True), 1):
            log_probs = self._log_probs(hidden[:, depth], level)
            total = total + log_probs[:, nodes, chunk.codes[:, level]]
        return total

    def _log_probs(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """Of all codes of a level, from states ``[B, m, H]``: ``[B, m, C]``."""
        states = hidden.flatten(0, 1).unsqueeze(1)
        logits = self.recommender.code_embedding.logits(states, slice(level, level + 1))
        return logits.log_softmax(dim=-1).view(*hidden.shape[:2], -1)


def _make_chunk(trie: Trie, rows: slice) -> _Chunk:
    codes, items = trie.codes[rows], trie.items[rows]
    path, depths, node_codes, node_levels, count = [], [], [], [], 0
    for level in range(trie.depth - 1):
        node = trie.nodes[level + 1][rows].long()
        node = node - node[0]  # neighbours in the trie have consecutive numbers
        first = torch.searchsorted(node, torch.arange(int(node[-1]) + 1, device=node.device))
        path.append(node)
        depths.append(slice(count, count + len(first)))
        node_codes.append(codes[first, level])
        node_levels.append(torch.full_like(first, level))
        count += len(first)
    sees = torch.zeros(count, count, dtype=torch.bool, device=codes.device)
    for below, depth in zip(path, depths, strict=True):
        for above, ancestor in zip(path, depths, strict=True):
            if ancestor.start <= depth.start:
                sees[below + depth.start, above + ancestor.start] = True
    return _Chunk(
        items,
        codes,
        path,
        depths,
        torch.cat(node_codes),
        torch.cat(node_levels),
        sees.unsqueeze(0),
    )
