"""Residual k-means: an item tokenizer without encoder and decoder.

Each level's codes are the k-means centroids of what the levels before leave of the item
embeddings. Nothing is pretrained; in tokenizer epochs the centroids learn on, from ``L_SQ`` and,
there being no encoder to pass the gradient to, from PSA through the sum of their rows.
"""

from typing import Any, ClassVar

from torch import nn

from recbole_etegrec.tokenizer.base import Tokenizer
from recbole_etegrec.tokenizer.residual_quantizer import ResidualQuantizer


class RQKMeans(Tokenizer):
    """The space of the codes is that of the item embeddings.

    Args:
        semantic_hidden_size: width of an item embedding ``d_z``, and so of a codebook row.
        levels: codebooks.
        code_num: codes in each.
        for_encoders: what a tokenizer with an encoder is built from.
    """

    pretrains: ClassVar[bool] = False

    def __init__(
        self, *, semantic_hidden_size: int, levels: int, code_num: int, **for_encoders: Any
    ):
        quantizer = ResidualQuantizer(levels=levels, code_num=code_num, e_dim=semantic_hidden_size)
        super().__init__(nn.Identity(), quantizer, nn.Identity())
