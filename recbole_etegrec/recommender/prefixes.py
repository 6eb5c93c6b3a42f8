"""The given paths of each user as a tree: a prefix that several paths share stands once."""

from typing import NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor

from recbole_etegrec.recommender.code_embedding import CodeEmbedding


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


class PrefixTree:
    """Paths ``[B, n, L]`` as the tokens that must be run to know their log-probabilities.

    A token stands for a prefix; there are ``m`` of them a user, shortest first, and none for whole
    paths, whose last code is predicted and never read.

    Args:
        whole: see :func:`prefix_levels`.

    Attributes:
        depth: codes before that of each token ``[m]``.
    """

    def __init__(self, codes: torch.Tensor, code_num: int, *, whole: bool = False):
        self.codes, self.levels = codes, prefix_levels(codes[..., :-1], code_num, whole=whole)
        self.sizes = [level.codes.shape[1] for level in self.levels]
        none = codes.new_zeros(0)
        depths = [codes.new_full((size,), number) for number, size in enumerate(self.sizes)]
        self.depth = torch.cat([none, *depths])

    def sees(self) -> torch.Tensor:
        """Which tokens each may see, see :func:`seen_by`: ``[B, m, m]``."""
        return seen_by(self.levels)

    def embed(self, embedding: CodeEmbedding) -> torch.Tensor:
        """The tokens ``[B, m, H]``."""
        tokens = [
            embedding.embed(level.codes.unsqueeze(-1), number).squeeze(2)
            for number, level in enumerate(self.levels)
        ]
        return torch.cat(tokens, dim=1)

    def log_probs(
        self, embedding: CodeEmbedding, state: torch.Tensor, states: torch.Tensor | None
    ) -> torch.Tensor:
        """Of each code of the paths, given those before it, in nats ``[B, n, L]``.

        Args:
            state: that predicts the first code ``[B, H]``.
            states: of the tokens ``[B, m, H]``; None where paths are of one code.
        """
        each = [state.unsqueeze(1)]  # before the codes of each level [B, M, H]
        if self.levels:
            each += states.split(self.sizes, dim=1)
        found = []
        for number, hidden in enumerate(each):
            logits = embedding.logits(hidden.flatten(0, 1).unsqueeze(1), slice(number, number + 1))
            log_probs = logits.log_softmax(dim=-1).view(len(self.codes), -1)  # [B, M * C]
            before = self.levels[number - 1].of * logits.shape[-1] if number else 0
            found.append(log_probs.gather(1, before + self.codes[..., number]))
        return torch.stack(found, dim=2)


def prefix_levels(codes: torch.Tensor, code_num: int, *, whole: bool = False) -> list[Level]:
    """The prefixes of paths ``[B, n, l]``, by their length from 1 to ``l``.

    Args:
        whole: whether a level has room for as many as there can be, so that its size does not
            depend on the codes, and nothing is read back from the device.
    """
    of, levels = torch.zeros_like(codes[..., :1]).sum(2), []
    whole = whole or isinstance(codes, FakeTensor)  # which have no data to tell by
    for level in codes.unbind(dim=2):
        key, order = (of * code_num + level).sort(dim=1)
        number = torch.cat([torch.zeros_like(key[:, :1]), (key.diff(dim=1) != 0).cumsum(1)], dim=1)
        of = torch.empty_like(order).scatter_(1, order, number)
        most = min(order.shape[1], code_num ** (len(levels) + 1)) if whole else _most(number)
        paths = torch.zeros_like(order).scatter_(1, number, order)[:, :most]
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
    """The most prefixes of a user."""
    return int(number[:, -1].max()) + 1
