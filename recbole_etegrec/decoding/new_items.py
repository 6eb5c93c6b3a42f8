"""Where items that came after training stand among the others.

A model has met the others as targets, and new items never. It can tell new items apart, but not how
likely it is that the next item is a new one. So the score of a new item is

    log p(new) + log p(item | new, history)

whose second term is a softmax over the best of the new items alone, and whose first, the bonus,
is one number for all histories, which `inference/exposure.py` finds. A new item takes the last
place of a list from the others wherever it stands itself, and is not as sure to be right as the
first of them. So it gets the last of ten places (`new_item_every`), and no more than that one.
"""

import torch

_BEST = 64  # new items that the softmax is over: of many more it would tell users less apart


def among_new(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T log p(item | new, history)``, ``p`` the softmax of ``scores / T`` over the best of them.

    Args:
        scores: of all new items ``[B, n]``.
    """
    best = scores.topk(min(_BEST, scores.shape[1])).values
    return scores - temperature * (best / temperature).logsumexp(dim=1, keepdim=True)


def spaced(scores: torch.Tensor, new: torch.Tensor, every: int) -> torch.Tensor:
    """Scores by which the j-th new item has place ``j every`` at best ``[B, n]``.

    A new item that would come sooner gets a score just below that of the other item which then is
    before it. The others keep theirs.

    Args:
        scores: of what is ranked, the best of the others among it ``[B, n]``.
        new: which of it are new items ``[B, n]``.
        every: 1 leaves all scores as they are.
    """
    if every == 1 or not scores.shape[1]:
        return scores
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    new = new.gather(1, order)
    others = ordered.masked_fill(new, -torch.inf).sort(dim=1, descending=True).values
    count = others.isfinite().sum(dim=1, keepdim=True)
    number = new.cumsum(dim=1)  # of a new item, from 1
    before = torch.minimum(number * (every - 1), count)
    limit = others.gather(1, (before - 1).clamp(min=0))
    below = limit - torch.nextafter(limit, torch.full_like(limit, -torch.inf))
    limit = (limit - number * below).masked_fill(before == 0, torch.inf)
    return scores.scatter(1, order, torch.where(new, torch.minimum(ordered, limit), ordered))
