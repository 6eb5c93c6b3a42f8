"""What the keys of the recommender must be together: backbone, pretrained base, adapters."""

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec

import torch
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from recbole_etegrec.config import Config
from recbole_etegrec.config.checks import launched_with
from recbole_etegrec.config.keys import named_in
from recbole_etegrec.data.tasks import tasks_of
from recbole_etegrec.recommender import BACKBONES

FLASH = {
    "flash_attention_2": is_flash_attn_2_available,
    "flash_attention_3": is_flash_attn_3_available,
}


def rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Pairs (whether it is broken, message), one for each rule."""
    yield named_in(BACKBONES, "backbone", config["backbone"])
    yield from _base_model_rules(config["base_model"], config["tuning"])
    if config["backbone"] == "t5":
        yield from _encoder_decoder_rules(config)
    yield (
        bool(config["distill_from"]) and not config["item_head"],
        "distill_from needs an item head: set item_head: True, or leave it out",
    )
    yield (
        config["item_head"] and config["backbone"] == "t5",
        "item_head (True) is for decoders, and backbone (t5) is an encoder and a decoder: set it "
        "to False",
    )
    yield (
        config["user_codes"] > 0 and config["backbone"] == "t5",
        f"user_codes ({config['user_codes']}) stand before what a decoder reads, and backbone (t5) "
        "has an encoder: set it to 0",
    )
    yield (
        bool(tasks_of(config)) and not config["base_model"],
        f"tasks ({', '.join(tasks_of(config))}) are of texts, and a decoder from scratch knows no "
        "text: give a base_model",
    )
    yield (
        config["new_item_codes"] == "title" and "title_to_codes" not in tasks_of(config),
        "new_item_codes (title) needs the task title_to_codes: give it a weight in tasks, or set "
        "new_item_codes to tokenizer",
    )
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    yield (
        not config["head_size"] and hidden % heads != 0,
        f"hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads})",
    )
    size = config["head_size"] or hidden // heads
    yield (
        config["backbone"] == "llama" and not config["base_model"] and size % 2 == 1,
        f"head_size ({size}) must be even with backbone (llama): its positions turn pairs",
    )
    attention = config["attn_implementation"]
    yield (
        attention in FLASH and not FLASH[attention](),
        f"attn_implementation ({attention}) needs a GPU and the package flash-attn; sdpa uses the "
        "flash kernels of torch where it can",
    )
    yield from _fused_rules(config["fused_kernels"], config["backbone"])
    masked = "preference" in config["schedule"] or bool(tasks_of(config))
    yield (
        attention in FLASH and config["gradient_checkpointing"] and masked,
        f"attn_implementation ({attention}) with gradient_checkpointing (True) is not for tasks "
        "and the phase preference, whose rows see what a mask says: set it to sdpa",
    )
    yield (
        attention in FLASH and config["precision"] == "fp32",
        f"attn_implementation ({attention}) needs precision bf16 or fp16",
    )


def _base_model_rules(base: str | None, tuning: str) -> Iterator[tuple[bool, str]]:
    yield (
        not base and tuning != "full",
        f"tuning ({tuning}) needs a base_model: a random decoder must learn as a whole",
    )
    gguf = str(base).endswith(".gguf")
    yield (
        gguf and find_spec("gguf") is None,
        f"base_model ({base}) needs the package gguf: pip install gguf",
    )
    yield (
        tuning == "qlora" and find_spec("bitsandbytes") is None,
        f"tuning ({tuning}) needs the package bitsandbytes: pip install bitsandbytes",
    )
    yield (
        gguf and tuning == "qlora",
        f"tuning (qlora) cannot quantize base_model ({base}) once more: choose lora",
    )


def _encoder_decoder_rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Rules on what an encoder and a decoder take; model ETEGRec keeps them all."""
    base, rows = config["base_model"], config["training_rows"]
    pooling, attention = config["alignment_pooling"], config["attn_implementation"]
    yield (
        bool(base),
        f"base_model ({base}) is a decoder, and backbone (t5) is an encoder and a decoder from "
        "scratch: choose model ETEGRecLlama",
    )
    yield (
        rows != "prefixes",
        f"training_rows ({rows}) must be prefixes with backbone (t5): an encoder sees all its row",
    )
    yield (
        pooling != "mean",
        f"alignment_pooling ({pooling}) must be mean with backbone (t5): SIA reads the encoder",
    )
    yield (
        attention not in ("sdpa", "eager"),
        f"attn_implementation ({attention}) must be sdpa or eager with backbone (t5)",
    )
    yield (
        launched_with("FSDP"),
        "distributed_type (FSDP) is for backbones that do not fit one GPU, and backbone (t5) does: "
        "start with properties/accelerate/ddp_bf16.yaml",
    )


def advice(config: Config) -> Iterator[str]:
    """What is allowed but hardly ever wanted, a line each."""
    base = config["base_model"]
    if base and config["projector_init"] == "normal":
        yield (
            "projector_init (normal) lets codes enter at another scale than the tokens that "
            f"base_model ({base}) knows: matched starts lower"
        )
    if config["item_content"] and not config["item_vector_dropout"]:
        yield (
            f"item_content ({config['item_content']}) is hardly learned from where each item has a "
            "vector of its own: set item_vector_dropout, as properties/new_items.yaml does"
        )


def _fused_rules(fused: str | None, backbone: str) -> Iterator[tuple[bool, str]]:
    on_gpu = torch.cuda.is_available()
    yield (
        fused == "liger" and on_gpu and not find_spec("liger_kernel"),
        f"fused_kernels ({fused}) needs the package liger-kernel: "
        "pip install 'recbole-etegrec[liger]'",
    )
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")  # as Triton
    yield (
        bool(fused) and on_gpu and not compiler,
        f"fused_kernels ({fused}) needs a C compiler: install gcc, or set it to ~",
    )
    yield (
        bool(fused) and backbone == "t5",
        f"fused_kernels ({fused}) is for LLaMA's layers, backbone (t5) has others: leave it out",
    )
