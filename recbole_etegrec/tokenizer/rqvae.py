"""RQ-VAE: the learnable item tokenizer.

Source: ETEGRec (SIGIR 2025), Eq. 3-9. It knows item embeddings only; the fourth, collision code
of an item is the business of ``item_codes``.
"""

from typing import NamedTuple

import torch
from torch import nn

from recbole_etegrec.tokenizer.residual_quantizer import Quantization, ResidualQuantizer


class TokenizerOutput(NamedTuple):
    """Attributes: the embedding ``z`` ``[B, d_z]``, its quantization, its reconstruction."""

    embedding: torch.Tensor
    quantization: Quantization
    reconstruction: torch.Tensor


class RQVAE(nn.Module):
    """``r = encoder(z)``, residual quantization of ``r``, ``z~ = decoder(sum_l e^l_{c_l})``.

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
        super().__init__()
        widths = [semantic_hidden_size, *hidden_sizes, e_dim]
        self.encoder = _mlp(widths)
        self.quantizer = ResidualQuantizer(levels=levels, code_num=code_num, e_dim=e_dim)
        self.decoder = _mlp(widths[::-1])

    def forward(
        self, embedding: torch.Tensor, latent: torch.Tensor | None = None
    ) -> tuple[TokenizerOutput, Quantization | None]:
        """Tokenize items and, for the alignment losses, quantize sequence latents too.

        One call does both, so that a wrapper around the module sees every use of it.

        Args:
            embedding: item embeddings ``[B, d_z]``.
            latent: vectors already in code space ``[n, d_c]``.
        """
        # Always fp32: it is small, and its codes must be those that `encode` gives.
        with torch.autocast(embedding.device.type, enabled=False):
            encoded = self.encoder(embedding)
            quantization = self.quantizer(encoded)
            quantized = quantization.selected.sum(dim=1)
            # Straight-through: the decoder's gradient passes to the encoder as if not rounded.
            reconstruction = self.decoder(encoded + (quantized - encoded).detach())
            output = TokenizerOutput(embedding, quantization, reconstruction)
            return output, None if latent is None else self.quantizer(latent.float())

    @torch.no_grad()
    def encode(self, embedding: torch.Tensor) -> torch.Tensor:
        """Semantic codes of items ``[N, levels]``."""
        return self.quantizer(self.encoder(embedding)).codes


def _mlp(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
