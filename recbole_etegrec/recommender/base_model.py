"""A pretrained decoder as the backbone: where it is found, how it is loaded, what of it learns.

Any decoder-only architecture of transformers will do that takes ``inputs_embeds`` with positions,
a cache and a mask of its own for each token; that is tried when it is loaded.
"""

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.configuration_utils import PreTrainedConfig

from recbole_etegrec.errors import UserError, hub_refusal
from recbole_etegrec.recommender.backbone import (
    additive_mask,
    cached,
    masked_attention,
    new_cache,
    residual_dtype,
)
from recbole_etegrec.recommender.text_tokens import TextTokens, check_plain_head

# What tells that a model is quantized, which its bare decoder is to say too.
_QUANTIZED = ("is_quantized", "is_loaded_in_4bit", "quantization_method", "hf_quantizer")
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@cache
def find_base_config(base_model: str, shapes: Path | None = None) -> PreTrainedConfig:
    """The configuration of a pretrained decoder.

    Args:
        base_model: a hub id, a directory, or a ``.gguf`` file.
        shapes: a folder of configurations by hub id; what is there is not asked for elsewhere.

    Raises:
        UserError: there is none, it cannot be reached, or it is no decoder.
    """
    known = shapes and shapes / f"{base_model}.json"
    if known and known.is_file() and not Path(base_model).exists():
        config = AutoConfig.for_model(**json.loads(known.read_text("utf-8")))
    else:
        try:
            config = AutoConfig.from_pretrained(**_source(base_model), trust_remote_code=False)
        except Exception as error:
            raise hub_refusal("base_model", base_model, error) from error
    if config.is_encoder_decoder or not hasattr(config, "num_hidden_layers"):
        raise UserError(f"base_model ({base_model}): {config.model_type} is not decoder-only")
    return config


def without_vocabulary(config: PreTrainedConfig) -> dict[str, Any]:
    """A configuration as plain data: of a token table of one row, and of no machine's folder."""
    values = config.to_dict()
    values.pop("_name_or_path", None)
    return {**values, "vocab_size": 1, **dict.fromkeys(_SPECIAL_TOKENS)}


def check_length(what: str, base_model: str, config: PreTrainedConfig, tokens: int) -> None:
    """Refuse a base that cannot see as many tokens.

    Args:
        what: the keys that the tokens come from, and what has them.

    Raises:
        UserError: see above.
    """
    for key in ("max_position_embeddings", "sliding_window"):
        limit = getattr(config, key, None)
        if limit is not None and limit < tokens:
            raise UserError(
                f"{what} are up to {tokens} tokens, base_model {base_model} sees {limit} ({key}): "
                "lower it"
            )


def load_text_tokenizer(base_model: str) -> PreTrainedTokenizerBase:
    """What writes texts as tokens of a pretrained decoder; special ones are never read in a text.

    Raises:
        UserError: it cannot be had.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(**_source(base_model), trust_remote_code=False)
    except Exception as error:
        raise hub_refusal("base_model", base_model, error, "its tokenizer") from error
    tokenizer.split_special_tokens = True
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.encode_special_tokens = True
    return tokenizer


def load_base_model(
    base_model: str,
    *,
    dtype: torch.dtype,
    attn_implementation: str,
    quantized: bool,
    device: str,
    text_head: str | None = None,
) -> tuple[PreTrainedModel, TextTokens | None]:
    """The bare decoder with its weights, and apart from it what reads and writes texts, if wanted.

    Args:
        base_model: see :func:`find_base_config`.
        dtype: of its weights.
        quantized: to 4 bits (NF4, double quantization; QLoRA, NeurIPS 2023), by bitsandbytes.
        device: where it is loaded.
        text_head: ``none``, ``tied`` to the token table, or its ``own``; None: neither table nor
            head is wanted, or kept.

    Raises:
        UserError: it cannot be found, or its architecture does not fit.
    """
    source, options = _source(base_model), {}
    if quantized:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if "gguf_file" not in source:
        options["device_map"] = {"": device}
    try:
        kind = AutoModelForCausalLM if text_head == "own" else AutoModel
        loaded = kind.from_pretrained(
            **source,
            dtype=dtype,
            attn_implementation=attn_implementation,
            trust_remote_code=False,
            **options,
        )
    except Exception as error:
        raise hub_refusal("base_model", base_model, error) from error
    model, text = _parts(base_model, loaded, text_head)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # On some CPUs bitsandbytes would pack 4-bit weights anew for ranking, and lose digits.
            module.support_avx512bf16_for_cpu = False
    drop_token_table(model)
    check_contract(base_model, model)
    return model, text


def _parts(
    base_model: str, loaded: PreTrainedModel, text_head: str | None
) -> tuple[PreTrainedModel, TextTokens | None]:
    """The bare decoder, which still has its token table, and that with a head; see above."""
    if text_head is None:
        return loaded, None
    if text_head != "none":
        check_plain_head(base_model, loaded.config)
    table = loaded.get_input_embeddings()
    if text_head != "own":
        return loaded, TextTokens(table)
    model = loaded.base_model
    for name in _QUANTIZED:
        if hasattr(loaded, name):
            setattr(model, name, getattr(loaded, name))
    return model, TextTokens(table, loaded.get_output_embeddings())


def drop_token_table(model: PreTrainedModel) -> None:
    """Free the token table, and keep the scale of its rows as ``token_rms``."""
    table = model.get_input_embeddings()
    if table is None:
        raise UserError(f"base_model: {type(model).__name__} has no token table")
    model.token_rms = 1.0 if table.weight.is_meta else float(_rms(table.weight))
    model.set_input_embeddings(nn.Identity())


def _rms(tensor: torch.Tensor) -> torch.Tensor:
    return torch.linalg.vector_norm(tensor.detach(), dtype=torch.float32) / tensor.numel() ** 0.5


@torch.no_grad()
def check_contract(base_model: str, model: PreTrainedModel) -> None:
    """Run a few tokens at once and behind a cache, as ranking does; both must give the same.

    Raises:
        UserError: the architecture is not causal, or ignores positions, cache or mask.
    """
    parameter = next(model.parameters())
    width, device = model.config.hidden_size, parameter.device
    tokens = torch.randn(1, 6, width, generator=torch.Generator().manual_seed(0)) * model.token_rms
    tokens = tokens.to(device, residual_dtype(model))
    position = torch.arange(6, device=device)
    try:
        with masked_attention(model):
            whole = model(inputs_embeds=tokens, use_cache=False).last_hidden_state
            cache = new_cache()
            model(inputs_embeds=tokens[:, :4], **cached(model, cache))
            # The last token stands beside the one before it: both follow the first four.
            visible = position[4:].unsqueeze(1) == position
            visible[:, :4] = True
            beside = model(
                inputs_embeds=tokens[:, [4, 4]],
                position_ids=position[[4, 4]].unsqueeze(0),
                attention_mask=additive_mask(visible[None, None], tokens.dtype),
                **cached(model, cache),
            ).last_hidden_state
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"base_model ({base_model}): does not take embeddings: {reason}") from error
    expected = whole[:, [4, 4]].float()
    error = torch.linalg.vector_norm(beside.float() - expected) / torch.linalg.vector_norm(expected)
    if not error < 0.05:
        raise UserError(
            f"base_model ({base_model}): {type(model).__name__} does not give a token the same "
            f"state behind a cache as in its sequence (they differ by {float(error):.0%})"
        )


def add_lora(
    backbone: PreTrainedModel,
    *,
    r: int,
    dropout: float,
    target_modules: list[str],
    alpha: float | None = None,
) -> PeftModel:
    """Freeze a backbone and add adapters to it (LoRA, ICLR 2022).

    Args:
        r: rank of the adapters.
        alpha: they are scaled by ``alpha / r``; None: by 2.

    Raises:
        UserError: it has no modules of those names.
    """
    config = LoraConfig(
        r=r,
        lora_alpha=2 * r if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules=list(target_modules),
    )
    try:
        with warnings.catch_warnings():  # of names that transformers is about to change
            warnings.simplefilter("ignore", FutureWarning)
            model = get_peft_model(backbone, config)
    except ValueError as error:
        linear = {
            name.rpartition(".")[2]
            for name, module in backbone.named_modules()
            if isinstance(module, nn.Linear)
        }
        raise UserError(
            f"lora_target_modules ({', '.join(target_modules)}): {str(error).splitlines()[0]} "
            f"(it has {', '.join(sorted(linear))})"
        ) from error
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            module._cast_input_dtype = _cast_unless_autocast
    return model


def _cast_unless_autocast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What peft does to the input of an adapter, but where autocast would undo it at once.

    Peft casts inputs to the type of the adapter's weights, fp32; autocast casts them back before
    they are multiplied. In between dropout would read and write twice as many bytes.
    """
    return tensor if torch.is_autocast_enabled(tensor.device.type) else tensor.to(dtype)


def _source(base_model: str) -> dict[str, str]:
    """The arguments by which `from_pretrained` finds a model."""
    path = Path(base_model).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"base_model ({base_model}): no such file")
        return {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"base_model ({base_model}): the directory holds no config.json")
    is_path = base_model.startswith(("/", ".", "~")) or base_model.endswith("/")
    if not path.is_dir() and (is_path or base_model.count("/") > 1):
        raise UserError(f"base_model ({base_model}): no such directory")
    return {"pretrained_model_name_or_path": str(path) if path.is_dir() else base_model}
