"""The recommender that a config describes: its backbone, what of it learns, its heads."""

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModel, PreTrainedModel

from recbole_etegrec.config import Config, properties_dir
from recbole_etegrec.config.checks import launched_with
from recbole_etegrec.recommender import BACKBONES, CodeEmbedding, EncoderDecoder, Recommender
from recbole_etegrec.recommender.backbone import add_residual_dropout, checkpoint_activations
from recbole_etegrec.recommender.base_model import (
    add_lora,
    check_length,
    drop_token_table,
    find_base_config,
    load_base_model,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(config: Config, device_type: str | None = None) -> torch.autocast:
    """The mixed precision of a config, as a context or a decorator.

    Args:
        device_type: in place of the config's.
    """
    return autocast_to(config["precision"], device_type or config["device"].type)


def autocast_to(precision: str, device_type: str) -> torch.autocast:
    """Mixed precision of a name in `DTYPES` on a kind of device."""
    dtype = DTYPES[precision]
    if dtype == torch.float32:
        return torch.autocast(device_type, enabled=False)
    return torch.autocast(device_type, dtype)


def build_recommender(
    config: Config, semantic_hidden_size: int, e_dim: int, *, shapes_only: bool = False
) -> Recommender:
    """The recommender of a config, on the CPU or, where it is pretrained, on the config's device.

    Args:
        semantic_hidden_size: width of the item embeddings.
        e_dim: width of the tokenizer's codebooks, for not all tokenizers follow the config's.
        shapes_only: weights are not wanted: make them on the meta device, without loading any.
    """
    if shapes_only:
        with torch.device("meta"):
            return _assemble(config, _backbone_shapes(config), semantic_hidden_size, e_dim)
    return _assemble(config, _backbone(config), semantic_hidden_size, e_dim)


def rebuild_recommender(
    values: Mapping[str, Any],
    base: dict[str, Any] | None,
    dtype: torch.dtype,
    semantic_hidden_size: int,
    e_dim: int,
) -> Recommender:
    """A recommender whose weights are to be put in place of those on the meta device.

    Args:
        values: of the config that it was trained by; adapters are part of its weights by now.
        base: the configuration of its backbone where that was pretrained, as transformers has it.
        dtype: of a pretrained backbone.
    """
    values = {**values, "base_model": None, "tuning": "full", "gradient_checkpointing": False}
    with init_empty_weights(include_buffers=False):
        if base is None:
            backbone = _backbone(values)
        else:
            backbone = AutoModel.from_config(AutoConfig.for_model(**base), dtype=dtype)
            drop_token_table(backbone)
        return _assemble(values, backbone, semantic_hidden_size, e_dim)


def check_base_model(config: Config) -> None:
    """Look at the configuration of the pretrained model, before any data is read.

    Raises:
        UserError: the model cannot be had, or is too short for the histories.
    """
    if config["base_model"]:
        check_length(config["base_model"], find_base_config(config["base_model"]), _tokens(config))


def _tokens(config: Config) -> int:
    return (config["MAX_ITEM_LIST_LENGTH"] + 1) * config["code_length"]


def _weight_dtype(config: Config) -> torch.dtype:
    """Weights that learn are fp32 under any precision; frozen ones need no more than it."""
    return torch.float32 if config["tuning"] == "full" else DTYPES[config["precision"]]


def _backbone(config: Config) -> PreTrainedModel:
    if config["base_model"]:
        model = load_base_model(
            config["base_model"],
            dtype=_weight_dtype(config),
            attn_implementation=config["attn_implementation"],
            quantized=config["tuning"] == "qlora",
            device="cpu" if launched_with("FSDP") else str(config["device"]),
        )
        add_residual_dropout(model, config["residual_dropout"])
        return model
    return BACKBONES[config["backbone"]](
        hidden_size=config["hidden_size"],
        num_hidden_layers=config["num_hidden_layers"],
        num_attention_heads=config["num_attention_heads"],
        intermediate_size=config["intermediate_size"],
        max_position_embeddings=_tokens(config),
        init_std=config["init_std"],
        head_size=config["head_size"],
        residual_dropout=config["residual_dropout"],
        attn_implementation=config["attn_implementation"],
    )


def _backbone_shapes(config: Config) -> PreTrainedModel:
    if config["base_model"]:
        base = find_base_config(config["base_model"], properties_dir() / "base_model")
        model = AutoModel.from_config(base, dtype=_weight_dtype(config))
        drop_token_table(model)
        add_residual_dropout(model, config["residual_dropout"])
    else:
        model = _backbone(config)
    if config["attn_implementation"] != "eager":
        model.set_attn_implementation("sdpa")  # all but eager hold as much; flash needs a GPU
    return model


def _assemble(
    config: Config, backbone: PreTrainedModel, semantic_hidden_size: int, e_dim: int
) -> Recommender:
    if config["gradient_checkpointing"]:
        checkpoint_activations(backbone)
    embedding = CodeEmbedding(
        code_length=config["code_length"],
        code_num=config["code_num"],
        e_dim=e_dim,
        hidden_size=backbone.config.hidden_size,
        init_std=config["init_std"],
        train_codebooks=config["codebook_update"] == "shared",
    )
    if config["tuning"] in ("lora", "qlora"):
        backbone = add_lora(
            backbone,
            r=config["lora_r"],
            alpha=config["lora_alpha"],
            dropout=config["lora_dropout"],
            target_modules=config["lora_target_modules"],
        )
    elif config["tuning"] == "frozen":
        backbone.requires_grad_(False)
    kind = EncoderDecoder if backbone.config.is_encoder_decoder else Recommender
    return kind(
        backbone,
        embedding,
        semantic_hidden_size=semantic_hidden_size,
        dropout=config["dropout"],
        alignment_pooling=config["alignment_pooling"],
        init_std=config["init_std"],
    )
