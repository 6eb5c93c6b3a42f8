"""What tokenizers share: a map into a code space, residual quantization there, a map back.

They know item embeddings only; collisions are the business of ``collisions`` and ``item_codes``.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import nn

from recbole_etegrec.tokenizer.kmeans import ROWS
from recbole_etegrec.tokenizer.residual_quantizer import Quantization, ResidualQuantizer


class TokenizerOutput(NamedTuple):
    """Attributes: the embedding ``z`` ``[B, d_z]``, its quantization, its reconstruction."""

    embedding: torch.Tensor
    quantization: Quantization
    reconstruction: torch.Tensor


class Tokenizer(nn.Module):
    """``r = encoder(z)``, residual quantization of ``r``, ``z~ = decoder(sum_l e^l_{c_l})``.

    Args:
        encoder: ``[B, d_z]`` → ``[B, d_c]``.
        quantizer: of width ``d_c``.
        decoder: ``[B, d_c]`` → ``[B, d_z]``.

    Attributes:
        pretrains: whether codes are worth little before encoder and decoder have learnt.
    """

    pretrains: ClassVar[bool] = True

    def __init__(self, encoder: nn.Module, quantizer: ResidualQuantizer, decoder: nn.Module):
        super().__init__()
        self.encoder, self.quantizer, self.decoder = encoder, quantizer, decoder

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
            if encoded.requires_grad:
                # Straight-through: the decoder's gradient passes to the encoder as if not rounded.
                quantized = encoded + (quantized - encoded).detach()
            output = TokenizerOutput(embedding, quantization, self.decoder(quantized))
            return output, None if latent is None else self.quantizer(latent.float())

    @torch.no_grad()
    def start(self, embedding: torch.Tensor, seed: int) -> None:
        """Start the codebooks from k-means over all encoded items ``[N, d_z]``."""
        self.quantizer.start_from(self.latents(embedding), seed)

    @torch.no_grad()
    def latents(self, embedding: torch.Tensor) -> torch.Tensor:
        """Items ``[N, d_z]`` in code space ``[N, d_c]``, some of them at a time."""
        return torch.cat([self.encoder(part) for part in embedding.split(ROWS)])

    @torch.no_grad()
    def encode(self, embedding: torch.Tensor) -> torch.Tensor:
        """Semantic codes of items ``[N, levels]``."""
        parts = embedding.split(ROWS)
        return torch.cat([self.quantizer(self.encoder(part)).codes for part in parts])

    @torch.no_grad()
    def hold(self, embedding: torch.Tensor, held: torch.Tensor, slack: float) -> torch.Tensor:
        """Semantic codes of items that have some, ``[N, levels]``: see `ResidualQuantizer.hold`."""
        parts = zip(embedding.split(ROWS), held.split(ROWS), strict=True)
        return torch.cat([self.quantizer.hold(self.encoder(z), own, slack) for z, own in parts])

    @torch.no_grad()
    def last_distances(self, embedding: torch.Tensor) -> torch.Tensor:
        """Squared distances of items' last residuals to the last level's codes ``[N, C]``."""
        return self.quantizer(self.encoder(embedding)).distances[:, -1]

    @torch.no_grad()
    def reconstruction_error(self, embedding: torch.Tensor, codes: torch.Tensor) -> float:
        """Mean square of ``z - z~``, when items ``[N, d_z]`` have given codes ``[N, levels]``."""
        total = 0.0
        for part, of_part in zip(embedding.split(ROWS), codes.split(ROWS), strict=True):
            decoded = self.decoder(self.quantizer.look_up(of_part))
            total += float((part - decoded).square().sum())
        return total / embedding.numel()
