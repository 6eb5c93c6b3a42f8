"""What the first design of a LLaMA port does, to be compared with: nothing is shared or kept."""

import numpy as np
import torch

from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.decoding.beam import Ranking
from recbole_etegrec.recommender import Recommender
from recbole_etegrec.tokenizer import Trie

ROWS, PIECES = 16, 8  # of a step: 2 prefix rows, 8 times accumulated


def draw_random_rows(loader: SequenceLoader, steps: int) -> None:
    """Give a loader of prefix rows a few steps of random ones, padded to the longest of a piece."""
    rng = np.random.default_rng(0)
    loader.split(PIECES)
    rows = len(loader.windows.end)
    loader.steps = [rng.choice(rows, min(ROWS, rows), replace=False) for _ in range(steps)]


@torch.no_grad()
def rerunning_beams(
    recommender: Recommender,
    trie: Trie,
    codes: torch.Tensor,
    lengths: torch.Tensor,
    num_beams: int,
) -> Ranking:
    """Beam search without a cache: for each code, each beam runs its whole history again.

    Args:
        codes: of histories, right-padded ``[B, T, L]``.
        lengths: their items ``[B]``.
    """
    users, items, levels = codes.shape
    lengths, device = lengths * levels, codes.device
    flat = torch.cat([codes.flatten(1), codes.new_zeros(users, levels)], dim=1)
    rows = torch.arange(users, device=device)
    tokens, nodes = flat.unsqueeze(1), codes.new_zeros(users, 1)  # [B, K, S], [B, K]
    scores = torch.zeros(users, 1, device=device)
    for level in range(levels):
        width = tokens.shape[1]
        log_probs = _next_code(recommender, tokens.flatten(0, 1), lengths + level, width, level)
        children = trie.children(level, nodes)
        grown = scores.unsqueeze(-1) + log_probs.gather(-1, children.codes)
        grown = grown.masked_fill(~children.exists, -torch.inf).flatten(1)
        keep = min(num_beams, trie.node_counts[level + 1], grown.shape[1])
        scores, best = grown.topk(keep, dim=-1)
        parents = best // children.codes.shape[-1]
        tokens = tokens[rows.unsqueeze(1), parents]
        chosen = children.codes.flatten(1).gather(1, best)
        end = (lengths + level).view(users, 1, 1).expand(-1, keep, -1)
        tokens = tokens.scatter(2, end, chosen.unsqueeze(-1))
        nodes = children.nodes.flatten(1).gather(1, best)
    return Ranking(trie.items[nodes], scores)


def _next_code(
    recommender: Recommender, tokens: torch.Tensor, ends: torch.Tensor, width: int, level: int
) -> torch.Tensor:
    """Log-probabilities of the code at each end, for each beam ``[B, K, C]``."""
    levels = recommender.code_embedding.tables().shape[0]
    length = int(ends.max())
    whole = -(-length // levels)
    codes = tokens[:, : whole * levels].unflatten(1, (whole, levels))
    embeddings = recommender.code_embedding.embed(codes).flatten(1, 2)[:, :length]
    ends = ends.repeat_interleave(width)
    hidden = recommender._run(embeddings, None)  # causality hides what stands after the end
    last = hidden[torch.arange(len(ends), device=ends.device), ends - 1].float()
    logits = recommender.code_embedding.logits(last.unsqueeze(1), slice(level, level + 1))
    return logits.squeeze(1).log_softmax(-1).unflatten(0, (-1, width))
