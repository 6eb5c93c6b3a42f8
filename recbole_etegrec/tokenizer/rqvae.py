"""RQ-VAE: the learnable item tokenizer.

Source: ETEGRec (SIGIR 2025), Eq. 3-9.
"""

from torch import nn

from recbole_etegrec.tokenizer.base import Tokenizer
from recbole_etegrec.tokenizer.residual_quantizer import ResidualQuantizer


class RQVAE(Tokenizer):
    """An MLP as encoder, its mirror image as decoder.

    Args:
        semantic_hidden_size: width of an item embedding ``d_z``.
        hidden_sizes: widths of the encoder's hidden layers; the decoder mirrors them.
        e_dim: width of the code space ``d_c``.
        levels: codebooks.
        code_num: codes in each.
    """

    def __init__(
        self,
        *,
        semantic_hidden_size: int,
        hidden_sizes: list[int],
        e_dim: int,
        levels: int,
        code_num: int,
    ):
        widths = [semantic_hidden_size, *hidden_sizes, e_dim]
        super().__init__(
            _mlp(widths),
            ResidualQuantizer(levels=levels, code_num=code_num, e_dim=e_dim),
            _mlp(widths[::-1]),
        )


def _mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
