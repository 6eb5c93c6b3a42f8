"""What a recommender is made of, as plain data: an export writes it as JSON as it is."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class RecommenderSpec:
    """All that determines the modules of a recommender and the shapes of their weights.

    Attributes:
        code_length: codes an item ``L``.
        code_num: codes a level ``C``.
        e_dim: width of a code ``D``.
        semantic_hidden_size: width of item embeddings ``d_z``.
        backbone: a name in `BACKBONES`. It and the six sizes below are of no use where there is a
            ``base_config``.
        hidden_size: width of the backbone ``H``.
        num_hidden_layers: layers of the backbone.
        num_attention_heads: attention heads of a layer.
        head_size: width of a head; none: ``hidden_size / num_attention_heads``.
        intermediate_size: width of the MLP.
        max_position_embeddings: tokens that the backbone sees at most.
        base_config: the configuration of a pretrained decoder, as transformers has it.
        base_precision: of the weights of a pretrained decoder, a name in `PRECISIONS`.
        attn_implementation: a name of transformers.
        init_std: standard deviation of initial weights.
        dropout: on the input embeddings and the final states.
        residual_dropout: on what attention and MLP add to the residual stream.
        alignment_pooling: the state that SIA and PSA read, ``last`` or ``mean``.
        head_items: items that the item head learns, the padding item included; 0: no head.
        head_vectors: items of its finished table of vectors, in an export; none: it has no table.
        content_width: width of what else is known of items ``d_c``; 0: nothing is.
        item_input: whether vectors of items enter the backbone.
        item_repeats: whether the head learns how likely items of a history come again.
        item_decoder_layers: of a decoder that reads items alone, for the head; 0: there is none.
        item_decoder_size: width of it.
        item_dropout: on the states that the head reads, and in that decoder.
        item_vector_dropout: share of the items that do without their free vectors in a step.
        new_item_likeness: weight of how alike items that came later are to a history.
        head_alike: columns of the table that tells it, in an export; 0: it has none.
        user_codes: codes of a user, which stand before the history; 0: there are none.
        text_tokens: tokens of text of a pretrained decoder ``V``; 0: it reads none.
        text_head: of these: ``none``, ``tied`` to the table, or its ``own``.
    """

    code_length: int
    code_num: int
    e_dim: int
    semantic_hidden_size: int
    backbone: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_size: int | None
    intermediate_size: int
    max_position_embeddings: int
    base_config: dict[str, Any] | None
    base_precision: str
    attn_implementation: str
    init_std: float
    dropout: float
    residual_dropout: float
    alignment_pooling: str
    head_items: int = 0
    head_vectors: int | None = None
    content_width: int = 0
    item_input: bool = False
    item_repeats: bool = False
    item_decoder_layers: int = 0
    item_decoder_size: int = 0
    item_dropout: float = 0.0
    item_vector_dropout: float = 0.0
    new_item_likeness: float = 0.0
    head_alike: int = 0
    user_codes: int = 0
    text_tokens: int = 0
    text_head: str = "none"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a recommender learns; after training, nothing of this is left.

    Attributes:
        base_model: where the weights of a pretrained decoder are: a hub id, a directory or a
            ``.gguf`` file.
        kind: what of the backbone learns: ``full``, ``lora``, ``qlora`` or ``frozen``.
        lora_r: rank of the adapters.
        lora_alpha: they are scaled by ``lora_alpha / lora_r``; none: twice ``lora_r``.
        lora_dropout: on their input.
        lora_target_modules: names of the linear layers that get one.
        train_codebooks: whether the codebook levels of the code embedding get gradients.
        gradient_checkpointing: whether activations are computed anew going back.
        fused_kernels: a name in `FUSED_KERNELS`, for layers on GPUs; none: as they are.
    """

    base_model: str | None = None
    kind: str = "full"
    lora_r: int = 64
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    lora_target_modules: tuple[str, ...] = ()
    train_codebooks: bool = True
    gradient_checkpointing: bool = False
    fused_kernels: str | None = None
