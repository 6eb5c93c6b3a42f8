"""The decoder-only language model, fed with ``inputs_embeds``.

It knows neither codes nor items. Its own token table and LM head are not kept in memory.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel, PreTrainedModel


def llama_from_scratch(
    *,
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    intermediate_size: int,
    max_position_embeddings: int,
    init_std: float,
) -> PreTrainedModel:
    """A randomly initialised LLaMA decoder of transformers, without its token table."""
    model = LlamaModel(
        LlamaConfig(
            vocab_size=1,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            intermediate_size=intermediate_size,
            max_position_embeddings=max_position_embeddings,
            initializer_range=init_std,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    model.embed_tokens = None
    return model


def add_residual_dropout(model: PreTrainedModel, probability: float) -> None:
    """Drop out what each attention and MLP block adds to the residual stream, as GPT-2 does."""

    def drop(module: nn.Module, _inputs, output):
        first, *rest = output if isinstance(output, tuple) else (output,)
        first = F.dropout(first, probability, training=module.training)
        return (first, *rest) if isinstance(output, tuple) else first

    for layer in model.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where ``visible``, the lowest number elsewhere: a mask any attention takes."""
    lowest = torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, lowest
    )


BACKBONES: dict[str, Callable[..., PreTrainedModel]] = {"llama": llama_from_scratch}
