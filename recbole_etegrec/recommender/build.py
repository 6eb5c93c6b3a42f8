"""From what a recommender is made of to its modules, with weights or without."""

from dataclasses import replace

import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from recbole_etegrec.errors import UserError
from recbole_etegrec.recommender.backbone import (
    BACKBONES,
    add_residual_dropout,
    checkpoint_activations,
)
from recbole_etegrec.recommender.base_model import add_lora, drop_token_table, load_base_model
from recbole_etegrec.recommender.code_embedding import CodeEmbedding
from recbole_etegrec.recommender.encoder_decoder import EncoderDecoder
from recbole_etegrec.recommender.fused_kernels import fuse
from recbole_etegrec.recommender.item_head import ItemHead
from recbole_etegrec.recommender.precision import PRECISIONS
from recbole_etegrec.recommender.recommender import Recommender
from recbole_etegrec.recommender.spec import RecommenderSpec, Tuning
from recbole_etegrec.recommender.text_tokens import TextTokens, empty_text_tokens


def build_recommender(
    spec: RecommenderSpec, tuning: Tuning, device: str | torch.device = "cpu"
) -> Recommender:
    """A recommender that is to learn: its weights are random, those of its base model loaded.

    Args:
        device: where a base model is loaded; all else is on the CPU.
    """
    recommender = _with_weights(spec, tuning, device)
    if tuning.fused_kernels and torch.cuda.is_available():
        fuse(recommender.backbone, tuning.fused_kernels)
    return recommender


def _with_weights(spec: RecommenderSpec, tuning: Tuning, device: str | torch.device) -> Recommender:
    if tuning.base_model is None:
        return _assemble(_backbone(spec), spec, tuning)
    backbone, text = load_base_model(
        tuning.base_model,
        dtype=PRECISIONS[spec.base_precision],
        attn_implementation=spec.attn_implementation,
        quantized=tuning.kind == "qlora",
        device=str(device),
        text_head=spec.text_head if spec.text_tokens else None,
    )
    add_residual_dropout(backbone, spec.residual_dropout)
    return _assemble(backbone, spec, tuning, text)


def empty_recommender(
    spec: RecommenderSpec, tuning: Tuning | None = None, *, keep_buffers: bool
) -> Recommender:
    """A recommender whose weights are on the meta device.

    Args:
        tuning: none: it does not learn.
        keep_buffers: whether buffers, which no file of weights holds, have values.
    """
    if spec.attn_implementation != "eager":
        # The others hold as much memory and give the same, but are not on every machine.
        spec = replace(spec, attn_implementation="sdpa")
    with init_empty_weights(include_buffers=False) if keep_buffers else torch.device("meta"):
        backbone = _backbone(spec)
        return _assemble(backbone, spec, tuning or Tuning(), _empty_text(spec, backbone))


def _backbone(spec: RecommenderSpec) -> PreTrainedModel:
    """The backbone with initial weights."""
    if spec.base_config is not None:
        model = AutoModel.from_config(
            AutoConfig.for_model(**spec.base_config),
            dtype=PRECISIONS[spec.base_precision],
            attn_implementation=spec.attn_implementation,
            trust_remote_code=False,
        )
        drop_token_table(model)
        add_residual_dropout(model, spec.residual_dropout)
        return model
    return BACKBONES[spec.backbone](
        hidden_size=spec.hidden_size,
        num_hidden_layers=spec.num_hidden_layers,
        num_attention_heads=spec.num_attention_heads,
        intermediate_size=spec.intermediate_size,
        max_position_embeddings=spec.max_position_embeddings,
        init_std=spec.init_std,
        head_size=spec.head_size,
        residual_dropout=spec.residual_dropout,
        attn_implementation=spec.attn_implementation,
    )


def _empty_text(spec: RecommenderSpec, backbone: PreTrainedModel) -> TextTokens | None:
    if not spec.text_tokens:
        return None
    text = empty_text_tokens(spec.text_tokens, backbone.config.hidden_size, spec.text_head)
    return text.to(PRECISIONS[spec.base_precision])


def _assemble(
    backbone: PreTrainedModel,
    spec: RecommenderSpec,
    tuning: Tuning,
    text: TextTokens | None = None,
) -> Recommender:
    if tuning.gradient_checkpointing:
        checkpoint_activations(backbone)
    embedding = CodeEmbedding(
        code_length=spec.code_length,
        code_num=spec.code_num,
        e_dim=spec.e_dim,
        hidden_size=backbone.config.hidden_size,
        init_std=spec.init_std,
        train_codebooks=tuning.train_codebooks,
        user_codes=spec.user_codes,
    )
    if tuning.kind in ("lora", "qlora"):
        backbone = add_lora(
            backbone,
            r=tuning.lora_r,
            alpha=tuning.lora_alpha,
            dropout=tuning.lora_dropout,
            target_modules=list(tuning.lora_target_modules),
        )
    elif tuning.kind == "frozen":
        backbone.requires_grad_(False)
    kind = EncoderDecoder if backbone.config.is_encoder_decoder else Recommender
    recommender = kind(
        backbone,
        embedding,
        semantic_hidden_size=spec.semantic_hidden_size,
        dropout=spec.dropout,
        alignment_pooling=spec.alignment_pooling,
        init_std=spec.init_std,
    )
    if spec.head_items:  # last, so that all else starts as without one
        recommender.item_head = _item_head(spec, backbone.config)
    if text is not None:
        recommender.text = text.requires_grad_(tuning.kind == "full")
    return recommender


def _item_head(spec: RecommenderSpec, config: PreTrainedConfig) -> ItemHead:
    if config.is_encoder_decoder:
        raise UserError(
            f"item_head (True) is for decoders, and backbone ({spec.backbone}) has an encoder: "
            "set it to False"
        )
    return ItemHead(
        items=spec.head_items,
        hidden_size=config.hidden_size,
        embedding_width=spec.semantic_hidden_size,
        content_width=spec.content_width,
        finished=spec.head_vectors,
        enters=spec.item_input,
        repeats=spec.item_repeats,
        dropout=spec.item_dropout,
        vector_dropout=spec.item_vector_dropout,
        likeness=spec.new_item_likeness,
        alike=spec.head_alike,
        decoder_layers=spec.item_decoder_layers,
        decoder_size=spec.item_decoder_size,
        max_items=spec.max_position_embeddings,
        init_std=spec.init_std,
    )
