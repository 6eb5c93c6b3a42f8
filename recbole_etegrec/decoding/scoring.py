"""Log-probabilities of given items, all behind one shared history."""

import torch

from recbole_etegrec.decoding.prefixes import prefix_levels, seen_by
from recbole_etegrec.recommender import EncodedHistory, Recommender

_TOKENS = {"cpu": 3072}  # run at once at most, so that layers find in the cache what others left


@torch.no_grad()
def score_items(
    recommender: Recommender, history: EncodedHistory, codes: torch.Tensor
) -> torch.Tensor:
    """``log p(item | history)`` of candidate items, a token for each prefix that they have.

    Args:
        history: encoded histories of ``B`` users; left as it was.
        codes: of each user's candidates ``[B, n, L]``.

    Returns:
        Sums over the codes, in nats ``[B, n]``.
    """
    rows, count, length = codes.shape
    most = _TOKENS.get(codes.device.type)
    users = rows if most is None else max(most // (count * length), 1)
    if users >= rows:
        return _score(recommender, history, codes)
    parts = [slice(start, start + users) for start in range(0, rows, users)]
    return torch.cat([_score(recommender, history.part(part), codes[part]) for part in parts])


def _score(recommender: Recommender, history: EncodedHistory, codes: torch.Tensor) -> torch.Tensor:
    """What :func:`score_items` gives, of all users at once."""
    embedding = recommender.code_embedding
    levels = prefix_levels(codes[..., :-1], embedding.code_num)  # the last code is never read
    states = [history.state.unsqueeze(1)]  # before the codes of each level [B, M, H]
    if levels:
        tokens = [
            embedding.embed(level.codes.unsqueeze(-1), number).squeeze(2)
            for number, level in enumerate(levels)
        ]
        sizes = [token.shape[1] for token in tokens]
        depth = torch.cat([torch.full((m,), n, device=codes.device) for n, m in enumerate(sizes)])
        further = recommender.extend(history, torch.cat(tokens, dim=1), depth, seen_by(levels))
        history.cache.crop(-sum(sizes))
        states += further.split(sizes, dim=1)
    total = torch.zeros(codes.shape[:2], device=codes.device)
    for number, hidden in enumerate(states):
        logits = embedding.logits(hidden.flatten(0, 1).unsqueeze(1), slice(number, number + 1))
        log_probs = logits.log_softmax(dim=-1).view(len(codes), -1)  # [B, M * C]
        before = levels[number - 1].of * logits.shape[-1] if number else 0
        total += log_probs.gather(1, before + codes[..., number])
    return total


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
