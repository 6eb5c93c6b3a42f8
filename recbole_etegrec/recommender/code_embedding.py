"""Code embedding and its tied output: one table serves both ends of the backbone."""

import torch
from torch import nn
from torch.nn import functional as F


class CodeEmbedding(nn.Module):
    """Codebook rows into the backbone, and logits over them out of it.

    Level ``l < L - 1`` holds the tokenizer's codebook ``l``, or starts from it; the last level is
    the table of the collision codes, which only the recommender has. There are no separate code
    heads: logits are ``output_projector(h) . e^l``, so the recommendation loss reaches the tables.

    Args:
        code_length: levels ``L``.
        code_num: codes a level ``C``.
        e_dim: width of a code ``D``.
        hidden_size: width of the backbone ``H``.
        init_std: standard deviation of the initial weights.
        train_codebooks: whether the codebook levels get gradients (the collision level does).
        user_codes: levels of the codes of users ``U``; 0: there are none.
    """

    def __init__(
        self,
        *,
        code_length: int,
        code_num: int,
        e_dim: int,
        hidden_size: int,
        init_std: float,
        train_codebooks: bool,
        user_codes: int = 0,
    ):
        super().__init__()
        self.code_num = code_num
        self.codebooks = nn.Parameter(
            torch.randn(code_length - 1, code_num, e_dim) * init_std,
            requires_grad=train_codebooks,
        )
        self.collision_table = nn.Parameter(torch.randn(1, code_num, e_dim) * init_std)
        self.scid_projector = nn.Linear(e_dim, hidden_size, bias=False)
        self.output_projector = nn.Linear(hidden_size, e_dim, bias=False)
        for projector in (self.scid_projector, self.output_projector):
            nn.init.normal_(projector.weight, std=init_std)
        self.user_table: nn.Parameter | None = None
        if user_codes:  # last, so that all else starts as without them
            self.user_table = nn.Parameter(torch.randn(user_codes, code_num, e_dim) * init_std)

    @property
    def count(self) -> int:
        """Codes of all levels, those of users included."""
        users = 0 if self.user_table is None else len(self.user_table)
        return (len(self.codebooks) + 1 + users) * self.code_num

    def tables(self) -> torch.Tensor:
        """All levels ``[L, C, D]``."""
        return torch.cat([self.codebooks, self.collision_table])

    def embed(self, codes: torch.Tensor, first_level: int = 0) -> torch.Tensor:
        """Codes ``[..., l]`` of levels ``first_level ..`` → ``[..., l, H]``."""
        levels = torch.arange(codes.shape[-1], device=codes.device) + first_level
        # F.embedding, not indexing: the backward of an index is serial on the CPU.
        rows = F.embedding(codes + levels * self.code_num, self.tables().flatten(0, 1))
        return self.scid_projector(rows).float()

    def embed_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Codes by one number each ``[...]`` → ``[..., H]``.

        Args:
            tokens: code ``k`` of level ``l`` is ``l C + k``; levels of users' codes follow those of
                items.
        """
        tables = self.tables()
        if self.user_table is not None:
            tables = torch.cat([tables, self.user_table])
        return self.scid_projector(F.embedding(tokens, tables.flatten(0, 1))).float()

    def logits(self, hidden: torch.Tensor, levels: slice = slice(None)) -> torch.Tensor:
        """Logits in fp32: states ``[n, l, H]`` of ``l`` levels → ``[n, l, C]``."""
        query = self.output_projector(hidden).float()
        with torch.autocast(query.device.type, enabled=False):
            return torch.einsum("nld,lcd->nlc", query, self.tables()[levels].float())
