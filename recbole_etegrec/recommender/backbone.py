"""The language model, a decoder or an encoder and a decoder, fed with ``inputs_embeds``.

It knows neither codes nor items. Its own token table and LM head are not kept in memory.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AttentionInterface,
    DynamicCache,
    EncoderDecoderCache,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    T5Config,
    T5Model,
)
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from recbole_etegrec.errors import UserError


def llama_from_scratch(
    *,
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    intermediate_size: int,
    max_position_embeddings: int,
    init_std: float,
    head_size: int | None = None,
    residual_dropout: float = 0.0,
    attn_implementation: str = "sdpa",
) -> PreTrainedModel:
    """A randomly initialised LLaMA decoder of transformers, without its token table.

    Like every backbone it has an attribute ``token_rms``, the root mean square of the token
    embeddings that it was made for.
    """
    model = LlamaModel(
        LlamaConfig(
            vocab_size=1,
            hidden_size=hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=num_attention_heads,
            head_dim=head_size,
            intermediate_size=intermediate_size,
            max_position_embeddings=max_position_embeddings,
            initializer_range=init_std,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            attn_implementation=attn_implementation,
        )
    )
    model.set_input_embeddings(nn.Identity())
    model.token_rms, model.causal_alone = init_std, True
    add_residual_dropout(model, residual_dropout)
    return model


def t5_from_scratch(
    *,
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    intermediate_size: int,
    max_position_embeddings: int,
    init_std: float,
    head_size: int | None = None,
    residual_dropout: float = 0.0,
    attn_implementation: str = "sdpa",
) -> PreTrainedModel:
    """A randomly initialised T5 (JMLR 2020) of as many layers on each side, without token table.

    T5 scales its initial weights by their shapes, and sees any distance: ``init_std`` and
    ``max_position_embeddings`` are for other backbones. Its decoder comes without relative
    positions, for whoever runs it to add to the mask: it would take a token's place in the cache
    for its position, which is another where branches of a tree stand side by side.
    """
    model = T5Model(
        T5Config(
            vocab_size=1,
            d_model=hidden_size,
            d_kv=head_size or hidden_size // num_attention_heads,
            d_ff=intermediate_size,
            num_layers=num_hidden_layers,
            num_heads=num_attention_heads,
            dropout_rate=residual_dropout,
            eos_token_id=None,
            pad_token_id=None,
            attn_implementation=attn_implementation,
        )
    )
    model.set_input_embeddings(nn.Identity())
    for stack in (model.encoder, model.decoder):
        stack.dropout.p = 0.0  # the recommender drops out embeddings and final states
    attention = model.decoder.block[0].layer[0].SelfAttention
    attention.has_relative_attention_bias = False
    del attention.relative_attention_bias
    model.token_rms = 1.0
    return model


def add_residual_dropout(model: PreTrainedModel, probability: float) -> None:
    """Drop out what each attention and MLP block adds to the residual stream, as GPT-2 does.

    Raises:
        UserError: the blocks do not have the names that LLaMA gave them.
    """
    if not probability:
        return

    def drop(module: nn.Module, _inputs, output):
        first, *rest = output if isinstance(output, tuple) else (output,)
        first = F.dropout(first, probability, training=module.training)
        return (first, *rest) if isinstance(output, tuple) else first

    try:
        blocks = [block for layer in model.layers for block in (layer.self_attn, layer.mlp)]
    except AttributeError as error:
        raise UserError(
            f"residual_dropout ({probability}): the layers of {type(model).__name__} have other "
            "parts than LLaMA's; set it to 0"
        ) from error
    for block in blocks:
        block.register_forward_hook(drop)


def checkpoint_activations(model: PreTrainedModel, on: bool = True) -> None:
    """Whether to keep the input of each layer alone, and compute the rest anew going back."""
    # transformers is about to rename its methods.
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    else:
        getattr(model, f"{name}_checkpointing_disable")()


@contextmanager
def masked_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use an attention that takes a mask for each token, where the model's own does not."""
    chosen = model.config._attn_implementation
    with _attention(model, chosen if chosen in _MASKED_ATTENTION else "sdpa"):
        yield


@contextmanager
def causal_attention(model: PreTrainedModel) -> Iterator[None]:
    """Use an attention that is causal by itself, where all that the model wants of a mask is that.

    transformers would look whether several sequences are packed in a row, which waits for the
    device.
    """
    chosen = model.config._attn_implementation
    alone = getattr(model, "causal_alone", False) and chosen == "sdpa"
    with _attention(model, _CAUSAL if alone else chosen):
        yield


@contextmanager
def _attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    config = model.config
    chosen = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = chosen


_MASKED_ATTENTION = ("sdpa", "eager")
_SPARE = 2  # further steps like the one that makes room: a beam of items of four codes has three
_CAUSAL = "sdpa_without_mask"  # transformers makes no mask for a name that it does not know
AttentionInterface.register(_CAUSAL, sdpa_attention_forward)


class _Roomy(DynamicLayer):
    """Keys and values with room behind them, where those of further tokens are written.

    So a step copies nothing of what is there, and what is cropped leaves its room to others.
    """

    _room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_, **__):
        """Take those of further tokens ``[B, h, n, d]``; returns those of all."""
        further = key_states, value_states
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.keys, self.values = further
            return further
        present = self.keys, self.values
        begin, end = present[0].shape[-2], present[0].shape[-2] + key_states.shape[-2]
        if self._room is None or self._room[0].shape[-2] < end:
            most = end + _SPARE * key_states.shape[-2]
            self._room = tuple(_with_room(part, most) for part in present)
        for room, part in zip(self._room, further, strict=True):
            room[..., begin:end, :] = part
        self.keys, self.values = (room[..., :end, :] for room in self._room)
        return self.keys, self.values


def _with_room(tensor: torch.Tensor, most: int) -> torch.Tensor:
    room = tensor.new_empty(*tensor.shape[:-2], most, tensor.shape[-1])
    room[..., : tensor.shape[-2], :] = tensor
    return room


def new_cache() -> DynamicCache:
    """An empty cache of keys and values; every layer keeps all tokens."""
    cache = DynamicCache()
    cache.layer_class_to_replicate = _Roomy
    return cache


def part_of_cache(
    cache: DynamicCache | EncoderDecoderCache, rows: slice
) -> DynamicCache | EncoderDecoderCache:
    """A cache of some rows of a batch, which grows without the other."""
    if isinstance(cache, EncoderDecoderCache):
        both = (cache.self_attention_cache, cache.cross_attention_cache)
        return EncoderDecoderCache(*(part_of_cache(one, rows) for one in both))
    part = new_cache()
    for number, layer in enumerate(cache.layers):
        if layer.keys is not None:
            part.update(layer.keys[rows], layer.values[rows], number)
    return part


def cached_tensors(cache: DynamicCache | EncoderDecoderCache) -> list[torch.Tensor]:
    """The keys and values of all layers, those of an encoder's states among them."""
    caches = [cache]
    if isinstance(cache, EncoderDecoderCache):
        caches = [cache.self_attention_cache, cache.cross_attention_cache]
    return [t for c in caches for layer in c.layers for t in (layer.keys, layer.values)]


def cached(model: nn.Module, cache: DynamicCache | EncoderDecoderCache | None) -> dict:
    """The arguments that make a model use a cache, by the name its version of transformers has."""
    if cache is None:
        return {"use_cache": False}
    decoder = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = inspect.signature(type(decoder).forward).parameters
    return {"use_cache": True, "cache" if "cache" in names else "past_key_values": cache}


def residual_dtype(model: nn.Module) -> torch.dtype:
    """The type of the residual stream: that of the norms, which are never quantized."""
    return next((p.dtype for p in model.parameters() if p.ndim == 1), torch.float32)


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """0 where ``visible``, the lowest number elsewhere: a mask any attention takes."""
    lowest = torch.finfo(dtype).min
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, lowest
    )


BACKBONES: dict[str, Callable[..., PreTrainedModel]] = {
    "llama": llama_from_scratch,
    "t5": t5_from_scratch,
}
