"""Log-probabilities of given items, all behind one shared history."""

import torch

from recbole_etegrec.recommender import EncodedHistory, PrefixTree, Recommender

_TOKENS = {"cpu": 3072}  # run at once at most, so that layers find in the cache what others left


@torch.no_grad()
def score_items(
    recommender: Recommender, history: EncodedHistory, codes: torch.Tensor, *, whole: bool = False
) -> torch.Tensor:
    """``log p(item | history)`` of candidate items, a token for each prefix that they have.

    Args:
        history: encoded histories of ``B`` users; left as it was.
        codes: of each user's candidates ``[B, n, L]``.
        whole: whether shapes are those of any candidates, see :func:`prefix_levels`.

    Returns:
        Sums over the codes, in nats ``[B, n]``.
    """
    return score_codes(recommender, history, codes, whole=whole).sum(dim=2)


@torch.no_grad()
def score_codes(
    recommender: Recommender, history: EncodedHistory, codes: torch.Tensor, *, whole: bool = False
) -> torch.Tensor:
    """The same for each code, given those before it ``[B, n, L]``."""
    rows, count, length = codes.shape
    most = _TOKENS.get(codes.device.type)
    users = rows if most is None else max(most // (count * length), 1)
    if users >= rows:
        return _score(recommender, history, codes, whole)
    parts = [slice(start, start + users) for start in range(0, rows, users)]
    return torch.cat(
        [_score(recommender, history.part(part), codes[part], whole) for part in parts]
    )


def _score(
    recommender: Recommender, history: EncodedHistory, codes: torch.Tensor, whole: bool
) -> torch.Tensor:
    """What :func:`score_codes` gives, of all users at once."""
    embedding = recommender.code_embedding
    tree, states = PrefixTree(codes, embedding.code_num, whole=whole), None
    if tree.levels:
        tokens = tree.embed(embedding)
        states = recommender.extend(history, tokens, tree.depth, tree.sees())
        history.cache.crop(-tokens.shape[1])
    return tree.log_probs(embedding, history.state, states)


@torch.no_grad()
def code_log_probs(
    recommender: Recommender, history: EncodedHistory, codes: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities of all codes at each step of given paths ``[B, n, L, C]``, in nats.

    Takes what `score_items` does; the codes of a path before a step are given.
    """
    rows, candidates, length = codes.shape
    steps = length - 1  # the last code is predicted, never read
    device = codes.device
    path = torch.arange(candidates, device=device).repeat_interleave(steps)
    depth = torch.arange(steps, device=device).repeat(candidates)
    sees = (path.unsqueeze(1) == path) & (depth.unsqueeze(1) >= depth)
    states = history.state.view(rows, 1, 1, -1).expand(-1, candidates, -1, -1)
    if steps:
        tokens = recommender.code_embedding.embed(codes[..., :-1]).flatten(1, 2)
        further = recommender.extend(history, tokens, depth, sees.unsqueeze(0))
        history.cache.crop(-candidates * steps)
        states = torch.cat([states, further.unflatten(1, (candidates, steps))], dim=2)
    logits = recommender.code_embedding.logits(states.flatten(0, 1))  # [B * n, L, C]
    return logits.log_softmax(dim=-1).unflatten(0, (rows, candidates))
