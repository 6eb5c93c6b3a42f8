"""The tokenizer's own loss ``L_SQ``."""

import torch

from recbole_etegrec.losses.objective import ForwardPass, Objective
from recbole_etegrec.tokenizer import TokenizerOutput


def quantization_loss(output: TokenizerOutput, beta: float) -> torch.Tensor:
    """Reconstruction, codebook and commitment terms of each item ``[B]``, in squared distance.

    ETEGRec (SIGIR 2025), Eq. 8-10:
    ``||z - z~||^2 + sum_l ||sg[v_l] - e||^2 + beta ||v_l - sg[e]||^2``. Departure: each squared
    norm is a mean over its dimensions, not a sum, as in the published code, because the weights
    of the alignment losses were tuned at that scale.

    Args:
        output: the tokenizer's output for items ``[B, ...]``.
        beta: weight of the commitment term.
    """
    quantization = output.quantization
    reconstruction = (output.embedding - output.reconstruction).pow(2).mean(-1)
    v, e = quantization.residuals, quantization.selected
    codebook = (v.detach() - e).pow(2).mean(-1).sum(-1)
    commitment = (v - e.detach()).pow(2).mean(-1).sum(-1)
    return reconstruction + codebook + beta * commitment


def _loss(forward: ForwardPass, beta: float) -> torch.Tensor:
    return forward.mean_over_items(quantization_loss(forward.items, beta))


QUANTIZATION = Objective(
    _loss,
    needs={"items"},
    trains=("tokenizer",),
    title="Quantization loss",
    unit="squared distance",
    options=("beta",),
    reaches=("encoder", "decoder", "codebooks"),
)
