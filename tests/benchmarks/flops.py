"""The arithmetic that a training step and a beam search cannot do without.

It knows models only by the shapes of their layers.
"""

from collections.abc import Iterable

import numpy as np
from torch import nn

from recbole_etegrec.data import SequenceBatch
from recbole_etegrec.recommender import Recommender


def linear_parameters(module: nn.Module) -> tuple[int, int]:
    """Weights of linear layers: those that are frozen, and those that learn."""
    weights = [m.weight for m in module.modules() if isinstance(m, nn.Linear)]
    learn = sum(w.numel() for w in weights if w.requires_grad)
    return sum(w.numel() for w in weights) - learn, learn


def useful_flops(recommender: Recommender, batches: Iterable[SequenceBatch]) -> int:
    """Operations of a forward and backward pass that no implementation can spare.

    A frozen weight costs 4 a token (2 forward, 2 for the gradient of its input), one that learns
    6. Attention costs ``12 * width`` a layer and pair of tokens of which one sees the other: 4
    forward (scores and sums), twice as many backward. The heads are counted where they are read.
    Padding, the last code of each sequence, which nothing follows, and whatever is computed anew
    under checkpointing count for nothing; neither do elementwise operations.
    """
    frozen, learning = linear_parameters(recommender.backbone)
    embedding = recommender.code_embedding
    levels, codes, e_dim = embedding.tables().shape
    a_token = 4 * frozen + 6 * (learning + embedding.scid_projector.weight.numel())
    a_code = 6 * (embedding.output_projector.weight.numel() + codes * e_dim)
    adapters = nn.ModuleList([recommender.enc_adapter, recommender.dec_adapter])
    a_target = levels * a_code + 6 * linear_parameters(adapters)[1]
    a_pair = 3 * _pair_flops(recommender)
    total = 0
    for batch in batches:
        tokens = (batch.items > 0).sum(dim=1) * levels - 1
        pairs = int((tokens * (tokens + 1)).sum()) // 2
        total += int(tokens.sum()) * a_token + len(batch.targets) * a_target
        total += pairs * a_pair
    return total


def beam_flops(recommender: Recommender, lengths: np.ndarray, num_beams: int) -> float:
    """Operations of a beam search behind a cache: each history once, each beam's codes once.

    What a beam sees of its own earlier codes is left out, as is a level of fewer nodes than beams.

    Args:
        lengths: tokens of each history ``[B]``.
    """
    embedding = recommender.code_embedding
    levels, codes, e_dim = embedding.tables().shape
    lengths = np.asarray(lengths, dtype=float)
    beams = num_beams * (levels - 1)  # tokens of a user behind the history
    weights = sum(linear_parameters(recommender.backbone)) + embedding.scid_projector.weight.numel()
    a_code = 2 * (embedding.output_projector.weight.numel() + codes * e_dim)
    pairs = float((lengths * (lengths + 1) / 2 + beams * lengths).sum())
    tokens = lengths.sum() + beams * len(lengths)
    total = 2 * weights * tokens + pairs * _pair_flops(recommender)
    return total + (beams + 1) * len(lengths) * a_code


def _pair_flops(recommender: Recommender) -> int:
    """Of attention in all layers, for a pair of tokens of which one sees the other."""
    config = recommender.backbone.config
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return 4 * width * config.num_hidden_layers
