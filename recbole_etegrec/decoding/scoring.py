"""Log-probabilities of given items, all behind one shared history."""

import torch

from recbole_etegrec.recommender import EncodedHistory, Recommender


@torch.no_grad()
def score_items(
    recommender: Recommender, history: EncodedHistory, codes: torch.Tensor
) -> torch.Tensor:
    """``log p(item | history)`` of candidate items, a path of tokens for each.

    Args:
        history: encoded histories of ``B`` users; left as it was.
        codes: of each user's candidates ``[B, n, L]``.

    Returns:
        Sums over the codes, in nats ``[B, n]``.
    """
    log_probs = code_log_probs(recommender, history, codes)
    return log_probs.gather(-1, codes.unsqueeze(-1)).sum(dim=(2, 3))


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
