"""What a config says of a model's parts, as the plain arguments that they are built from."""

from dataclasses import fields
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from recbole_etegrec.config import Config, properties_dir
from recbole_etegrec.data.tasks import TASKS, tasks_of
from recbole_etegrec.decoding import RANKERS, ranking_of
from recbole_etegrec.recommender import RecommenderSpec, Tuning
from recbole_etegrec.recommender.base_model import (
    check_length,
    find_base_config,
    without_vocabulary,
)
from recbole_etegrec.tokenizer import default_code_num, default_tokenizer_epochs


def recommender_spec(
    config: Config,
    semantic_hidden_size: int,
    e_dim: int,
    *,
    n_items: int = 0,
    content_width: int = 0,
    shapes_only: bool = False,
) -> RecommenderSpec:
    """What the recommender of a config is made of.

    Args:
        semantic_hidden_size: width of the item embeddings.
        e_dim: width of the tokenizer's codebooks, for not all tokenizers follow the config's.
        n_items: items, the padding item included, for an item head.
        content_width: width of their content; 0: there is none.
        shapes_only: whether no weights are wanted: the shapes of some base models come with the
            package, and their hub is not asked.

    Raises:
        UserError: the configuration of the base model cannot be had.
    """
    base, text = None, {"text_tokens": 0, "text_head": "none"}
    if config["base_model"]:
        shapes = properties_dir() / "base_model" if shapes_only else None
        found = find_base_config(config["base_model"], shapes)
        base, text = without_vocabulary(found), _text_of(config, found)
    given = {
        "e_dim": e_dim,
        "semantic_hidden_size": semantic_hidden_size,
        "max_position_embeddings": _tokens(config),
        "base_config": base,
        "head_items": n_items if config["item_head"] else 0,
        "head_vectors": None,
        "head_alike": 0,
        "content_width": content_width,
        **text,
        # Weights that learn are fp32 under any precision; frozen ones need no more than it.
        "base_precision": "fp32" if config["tuning"] == "full" else config["precision"],
    }
    keys = {field.name for field in fields(RecommenderSpec)} - given.keys()
    return RecommenderSpec(**given, **{key: config[key] for key in keys})


def _text_of(config: Config, base: PreTrainedConfig) -> dict[str, Any]:
    """What of a base's token table and head the tasks of a config need."""
    tasks = [TASKS[name] for name in tasks_of(config)]
    if not tasks:
        return {"text_tokens": 0, "text_head": "none"}
    tied = getattr(base, "tie_word_embeddings", False)
    asks = any(task.target == "title" for task in tasks)
    head = ("tied" if tied else "own") if asks else "none"
    return {"text_tokens": base.vocab_size, "text_head": head}


def settle_codes(config: Config, n_items: int) -> None:
    """Settle what a config leaves to the catalogue.

    Args:
        n_items: items, the padding item included.
    """
    config.settle("code_num", default_code_num(n_items - 1, config["code_length"]))
    config.settle("tokenizer_epochs", default_tokenizer_epochs(n_items - 1))


def tuning_of(config: Config) -> Tuning:
    """How the recommender of a config learns."""
    return Tuning(
        base_model=config["base_model"],
        kind=config["tuning"],
        lora_r=config["lora_r"],
        lora_alpha=config["lora_alpha"],
        lora_dropout=config["lora_dropout"],
        lora_target_modules=tuple(config["lora_target_modules"]),
        train_codebooks=config["codebook_update"] != "tokenizer_only",
        gradient_checkpointing=config["gradient_checkpointing"],
        fused_kernels=config["fused_kernels"],
    )


def ranker_options(config: Config) -> dict[str, Any]:
    """The options of the ranker that a config names, by the keys that it says it reads."""
    return {key: config[key] for key in RANKERS[ranking_of(config)].keys}


def check_base_model(config: Config) -> None:
    """Look at the configuration of the pretrained model, before any data is read.

    Raises:
        UserError: the model cannot be had, or is too short for the histories.
    """
    if config["base_model"]:
        base = config["base_model"]
        what = "MAX_ITEM_LIST_LENGTH: its histories"
        check_length(what, base, find_base_config(base), _tokens(config))


def _tokens(config: Config) -> int:
    items = (config["MAX_ITEM_LIST_LENGTH"] + 1) * config["code_length"]
    return items + config["user_codes"]
