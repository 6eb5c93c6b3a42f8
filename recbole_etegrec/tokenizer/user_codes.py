"""Codes of users: what the items known of a user are on average, as a tuple of codes.

They have a tokenizer of their own, residual k-means over such means of the training part. Its
codebooks never learn, as item embeddings do not.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from recbole_etegrec.data.sequences import Sequences
from recbole_etegrec.tokenizer.residual_quantizer import ResidualQuantizer

_MEANS = 2**14  # that codebooks are made of at most


class UserCodes(nn.Module):
    """Quantizes the mean of the embeddings of some items of each user.

    Args:
        levels: codes of a user ``U``.
        code_num: codes a level ``C``.
        width: of item embeddings ``d_z``.
        finished: rows of a table of item embeddings of its own, as an export has it; None: it is
            lent the model's.
    """

    def __init__(self, *, levels: int, code_num: int, width: int, finished: int | None = None):
        super().__init__()
        self.quantizer = ResidualQuantizer(levels=levels, code_num=code_num, e_dim=width)
        self.quantizer.requires_grad_(False)
        self._embedding: torch.Tensor | None = None  # no buffer: it moves with its owner
        self.table: nn.Parameter | None = None
        if finished is not None:
            self.table = nn.Parameter(torch.empty(finished, width), requires_grad=False)

    def lend(self, embedding: torch.Tensor) -> None:
        """Read the embeddings of all items ``[N, d_z]``, of which no copy is kept."""
        self._embedding = embedding

    def finish(self) -> None:
        """Keep a copy of the embeddings, for use where nobody lends them."""
        self.table = nn.Parameter(self._embedding.clone(), requires_grad=False)

    @torch.no_grad()
    def start(self, sequences: Sequences, most: int, seed: int) -> None:
        """Make the codebooks of the means of all beginnings of some sequences, or of a sample.

        Args:
            most: items of a mean at most, the last ones.
            seed: of the sample and of k-means.
        """
        offsets = sequences.offsets
        count = min(int(offsets[-1]), _MEANS)
        chosen = np.sort(np.random.default_rng(seed).choice(offsets[-1], count, replace=False))
        row = np.searchsorted(offsets, chosen, side="right") - 1
        ends = sequences.start[row] + chosen - offsets[row] + 1
        begins = np.maximum(sequences.start[row], ends - most)
        means = []
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            items = torch.from_numpy(sequences.items[begin:end].astype(np.int64))
            means.append(self._embedding[items.to(self._embedding.device)].mean(dim=0))
        place = self.quantizer.codebooks.device
        self.quantizer.start_from(torch.stack(means).to(place), seed)

    @torch.no_grad()
    def forward(self, items: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Codes of users ``[B, U]``.

        Args:
            items: ids of the items of rows ``[B, T]``.
            real: which of them count; others have no part in the codes ``[B, T]``.
        """
        table = self._embedding if self.table is None else self.table
        with torch.autocast(table.device.type, enabled=False):
            share = real.to(table) / real.sum(dim=1, keepdim=True).clamp_min(1)
            means = torch.einsum("bt,btd->bd", share, F.embedding(items, table))
            return self.quantizer(means).codes
