"""Residual quantization: a vector becomes one code a level.

Source: ETEGRec (SIGIR 2025), Eq. 3-7.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from recbole_etegrec.tokenizer.kmeans import ROWS, distinct_rows, kmeans

_REVIVALS = 10  # rounds at most, since a moved code can take all items of another
_DRAWN_FROM = 2**24  # items at most: torch draws from no more


class Quantization(NamedTuple):
    """What quantizing vectors gives, over ``Q`` levels.

    Attributes:
        codes: chosen codes ``[B, Q]``.
        distances: squared distances of each residual to its level's codebook ``[B, Q, C]``.
        residuals: ``v_l`` before each level ``[B, Q, D]``.
        selected: the codebook rows chosen ``[B, Q, D]``.
    """

    codes: torch.Tensor
    distances: torch.Tensor
    residuals: torch.Tensor
    selected: torch.Tensor

    def log_probabilities(self) -> torch.Tensor:
        """``log P(k | v_l) = log softmax_k(-||v_l - e_k||^2)`` (Eq. 6), ``[B, Q, C]``."""
        return torch.log_softmax(-self.distances, dim=-1)


class ResidualQuantizer(nn.Module):
    """``v_1 = v``; ``c_l = argmin_k ||v_l - e^l_k||``; ``v_{l+1} = v_l - e^l_{c_l}``.

    A residual keeps the gradient of ``v`` and drops that of the rows subtracted, so commitment
    and alignment losses of every level reach the encoder. (The published code applies the
    straight-through estimator inside the loop, after which levels 2 and deeper reach nothing.)

    Args:
        levels: codebooks ``Q``.
        code_num: rows of each ``C``.
        e_dim: width of a row ``D``.
    """

    def __init__(self, *, levels: int, code_num: int, e_dim: int):
        super().__init__()
        self.codebooks = nn.Parameter(torch.randn(levels, code_num, e_dim) * 0.02)

    def forward(self, v: torch.Tensor) -> Quantization:
        """Quantize ``v`` ``[B, D]``."""
        steps = []
        for codebook in self.codebooks:
            distance = squared_distances(v, codebook)
            code = distance.argmin(dim=-1)
            selected = F.embedding(code, codebook)
            steps.append((code, distance, v, selected))
            v = v - selected.detach()
        return Quantization(*(torch.stack(column, dim=1) for column in zip(*steps, strict=True)))

    @torch.no_grad()
    def hold(self, v: torch.Tensor, held: torch.Tensor, slack: float) -> torch.Tensor:
        """Codes of vectors ``[B, D]`` that have codes already: these stay where they are as good.

        The straight-through gradient draws many vectors onto the boundary between two codes, where
        each step of training tips them over and back. So a code stays until another is nearer by
        more than a part of the distance; with 0 it is always the nearest.

        Args:
            held: the present codes ``[B, Q]``.
            slack: the part, of squared distances.
        """
        codes = []
        for codebook, present in zip(self.codebooks, held.T, strict=True):
            distance = squared_distances(v, codebook).clamp_min_(0)
            least, code = distance.min(dim=-1)
            stays = distance.gather(1, present.unsqueeze(1)).squeeze(1) <= (1 + slack) * least
            codes.append(torch.where(stays, present, code))
            v = v - codebook[codes[-1]]
        return torch.stack(codes, dim=1)

    def look_up(self, codes: torch.Tensor) -> torch.Tensor:
        """The sums of the rows that codes ``[B, Q]`` stand for ``[B, D]``."""
        rows = zip(codes.T, self.codebooks, strict=True)
        return sum(F.embedding(code, codebook) for code, codebook in rows)

    @torch.no_grad()
    def start_from(self, vectors: torch.Tensor, seed: int) -> None:
        """Set each codebook to the k-means centroids of that level's residuals.

        With fewer distinct vectors than codes, the codes past them keep their random start.

        Args:
            vectors: encoded items ``[N, D]``.
        """
        residual = vectors.float()
        for level in range(len(self.codebooks)):
            clusters = distinct_rows(residual, self.codebooks.shape[1])
            found = kmeans(residual, clusters, seed + level)
            self.codebooks[level, :clusters] = found.centroids
            residual = _without(residual, found.centroids, found.nearest)

    @torch.no_grad()
    def revive(self, vectors: torch.Tensor, generator: torch.Generator) -> int:
        """Move every unused code onto the residual of an item that its code serves badly.

        Args:
            vectors: encoded items ``[N, D]``.
            generator: on the CPU.

        Returns:
            How many codes moved.
        """
        moved, v = 0, vectors
        for codebook in self.codebooks:
            for _ in range(_REVIVALS):
                error, code = _nearest(v, codebook)
                unused = torch.bincount(code, minlength=len(codebook)) == 0
                count = min(int(unused.sum()), int((error > 0).sum()))
                if count == 0:
                    break
                every = -(-len(error) // _DRAWN_FROM)
                pick = torch.multinomial(error.cpu()[::every], count, generator=generator)
                pick = pick.to(v.device) * every
                codebook[unused.nonzero().squeeze(1)[:count]] = v[pick]
                moved += count
            v = _without(v, codebook, _nearest(v, codebook)[1])
        return moved


def _nearest(v: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The squared distance of each vector to its nearest row, and that row ``[N]``."""
    parts = [squared_distances(p, codebook).clamp_min_(0).min(dim=-1) for p in v.split(ROWS)]
    distances, rows = zip(*parts, strict=True)
    return torch.cat(distances), torch.cat(rows)


def _without(v: torch.Tensor, codebook: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """What rows of a codebook leave of vectors ``[N, D]``."""
    left = torch.empty_like(v)
    for part, own, of_part in zip(left.split(ROWS), v.split(ROWS), rows.split(ROWS), strict=True):
        torch.sub(own, codebook[of_part], out=part)
    return left


def squared_distances(v: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """``||v - e_k||^2`` of ``[B, D]`` to ``[C, D]``, by the expanded square: ``[B, C]``."""
    return v.pow(2).sum(-1, keepdim=True) - 2 * v @ codebook.T + codebook.pow(2).sum(-1)
