"""Where the items of a history come again."""

import torch


def among(items: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Which items ``[B, n]`` are among others of their row ``[B, T]``; padding never is."""
    return (items.unsqueeze(2) == others.unsqueeze(1)).any(dim=2) & (items > 0)


def came_before(items: torch.Tensor) -> torch.Tensor:
    """Which items ``[B, T]`` have come in their row before."""
    return (items.unsqueeze(2) == items.unsqueeze(1)).tril(-1).any(dim=2)


def seen_before(items: torch.Tensor, target_index: torch.Tensor) -> torch.Tensor:
    """The distinct items of the history of each target ``[n, T - 1]``, 0 in the places between.

    Args:
        items: ids of sequences, padded with 0 ``[B, T]``.
        target_index: as the recommender takes it ``[n]``.
    """
    history = items[:, :-1]
    width = history.shape[1]
    seen = history.masked_fill(came_before(history), 0)[target_index // width]
    place = torch.arange(width, device=items.device)
    return seen.masked_fill(place > (target_index % width).unsqueeze(1), 0)
