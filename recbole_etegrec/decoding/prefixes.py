"""The given paths of each user as a tree: a prefix that several paths share stands once."""

from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor


class Level(NamedTuple):
    """The distinct prefixes of one length, ``M`` being the most that a user has.

    Where a user has fewer, one of them stands in for those that are missing.

    Attributes:
        codes: the last code of each ``[B, M]``.
        paths: a path that begins with each ``[B, M]``.
        of: the prefix that each path begins with ``[B, n]``.
    """

    codes: torch.Tensor
    paths: torch.Tensor
    of: torch.Tensor


def prefix_levels(codes: torch.Tensor, code_num: int) -> list[Level]:
    """The prefixes of paths ``[B, n, l]``, by their length from 1 to ``l``."""
    of, levels = torch.zeros_like(codes[..., :1]).sum(2), []
    for level in codes.unbind(dim=2):
        key, order = (of * code_num + level).sort(dim=1)
        number = torch.cat([torch.zeros_like(key[:, :1]), (key.diff(dim=1) != 0).cumsum(1)], dim=1)
        of = torch.empty_like(order).scatter_(1, order, number)
        paths = torch.zeros_like(order).scatter_(1, number, order)[:, : _most(number)]
        levels.append(Level(level.gather(1, paths), paths, of))
    return levels


def seen_by(levels: list[Level]) -> torch.Tensor:
    """Which prefixes each may see, its own beginnings and itself: ``[B, m, m]``, level by level."""
    rows = []
    for number, level in enumerate(levels):
        row = []
        for other, above in enumerate(levels):
            own = above.of.gather(1, level.paths).unsqueeze(2)  # [B, M, 1]
            place = torch.arange(above.codes.shape[1], device=own.device)
            row.append(own == (place if other <= number else place - len(place)))  # none below
        rows.append(torch.cat(row, dim=2))
    return torch.cat(rows, dim=1)


def _most(number: torch.Tensor) -> int:
    """The most prefixes of a user, as many as paths where tensors have no data to tell by."""
    if isinstance(number, FakeTensor):
        return number.shape[1]
    return int(number[:, -1].max()) + 1
