"""A small decoder that reads histories as items alone, beside the one that reads them as codes.

The two err elsewhere, so the mean of their scores ranks better than either. Alone it would be a
SASRec (ICDM 2018) with the layers of LLaMA.
"""

import torch
from torch import nn

from recbole_etegrec.recommender.backbone import causal_attention, llama_from_scratch

_HEADS = 2


class ItemDecoder(nn.Module):
    """Reads an item a token, by a vector that it shares with nobody.

    Args:
        width: of vectors and queries ``d``.
        hidden_size: of states ``h``.
        layers: of LLaMA.
        max_items: of a history at most.
        dropout: on vectors, in the layers and on states.
        init_std: standard deviation of the layers' initial weights.
    """

    def __init__(
        self,
        *,
        width: int,
        hidden_size: int,
        layers: int,
        max_items: int,
        dropout: float,
        init_std: float,
    ):
        super().__init__()
        self.backbone = llama_from_scratch(
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=_HEADS,
            head_size=max(hidden_size // _HEADS // 2 * 2, 2),  # even, as rotary positions want it
            intermediate_size=4 * hidden_size,
            max_position_embeddings=max_items,
            init_std=init_std,
            residual_dropout=dropout,
        )
        self.dropout = nn.Dropout(dropout)
        self.enter = nn.Linear(width, hidden_size, bias=False)
        self.query = nn.Linear(hidden_size, width, bias=False)
        for linear in (self.enter, self.query):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """States after each item ``[B, T, h]``.

        Args:
            vectors: of the items of histories, padded on the right, where causality hides it
                ``[B, T, d]``.
        """
        inputs = self.dropout(self.enter(vectors))
        with causal_attention(self.backbone):
            output = self.backbone(inputs_embeds=inputs, use_cache=False)
        return output.last_hidden_state

    def ask(self, states: torch.Tensor) -> torch.Tensor:
        """The query of states ``[n, h]``: ``[n, d]``, in fp32."""
        return self.query(self.dropout(states)).float()
