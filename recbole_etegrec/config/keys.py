"""The table of the plugin's keys: what a value of each must be.

The table looks at one value at a time; its kinds of values are in `kinds.py`, RecBole's keys in
`recbole_keys.py`. What must hold between keys stands beside the part that it concerns, as
``rules(config)``. This module imports nothing heavy, so that a wrong value can be refused at once.
"""

from collections.abc import Iterable
from typing import Any

from recbole_etegrec.config.kinds import (
    Key,
    above_zero,
    boolean,
    choice,
    either,
    entry,
    fields,
    integer,
    listed,
    mapping,
    number,
    optional,
    path,
    share,
    text,
    weight,
)
from recbole_etegrec.errors import nearest

WIDEST = 2**16  # of layers and vectors
LONGEST = 100_000  # epochs

SOURCES = ("collaborative", "file", "sasrec", "text")
CONTENT = ("fields", "text")
PHASES = (
    "pretraining",
    "alternation",
    "joint",
    "final",
    "polish",
    "final_from_scratch",
    "tasks",
    "preference",
)

KEYS: dict[str, Key] = {
    # Data
    "binary_from_mib": optional(weight()),
    # Item embeddings
    "item_embedding": either(
        entry(*SOURCES),
        listed(entry(*SOURCES), "sources"),
        wanted=f"one of {', '.join(SOURCES)}, or a list of them",
    ),
    "item_content": optional(
        either(
            choice(*CONTENT),
            listed(choice(*CONTENT), "sources"),
            wanted=f"one of {', '.join(CONTENT)}, a list of them, or nothing",
        )
    ),
    "content_fields": optional(listed(text(), "a list of fields of the .item file", least=1)),
    "embedding_cache": path("a folder"),
    "semantic_hidden_size": integer(1, WIDEST),
    "cooccurrence_window": integer(1, 10_000),
    "sasrec_epochs": integer(1, LONGEST),
    "sasrec_run": optional(path("the directory of a finished run of SASRec")),
    "text_model": text("a hub id or a directory"),
    "text_fields": optional(listed(text(), "a list of fields of the .item file", least=1)),
    "item_embedding_file": optional(path("an existing file when item_embedding is 'file'")),
    # Tokenizer
    "tokenizer": entry("rqvae", "rqkmeans"),
    "collision": choice("suffix", "sinkhorn"),
    "code_length": integer(2, 16),
    "code_num": optional(integer(1, WIDEST)),
    "e_dim": integer(1, WIDEST),
    "tokenizer_hidden_sizes": listed(
        integer(1, WIDEST), "a list of whole numbers from 1 to 65536", most=32
    ),
    "beta": weight(),
    "tokenizer_epochs": optional(integer(0, LONGEST)),
    "tokenizer_batch_size": integer(1),
    "tokenizer_learning_rate": above_zero(),
    # Recommender
    "backbone": entry("llama", "t5"),
    "hidden_size": integer(1, WIDEST),
    "num_hidden_layers": integer(1, 1000),
    "num_attention_heads": integer(1, 1024),
    "head_size": optional(integer(1, WIDEST)),
    "intermediate_size": integer(1, 2**20),
    "base_model": optional(text("a hub id, a directory or a .gguf file, or nothing")),
    "tuning": choice("full", "lora", "qlora", "frozen"),
    "lora_r": integer(1, WIDEST),
    "lora_alpha": optional(above_zero()),
    "lora_dropout": share(),
    "lora_target_modules": listed(text(), "a list of names of linear layers", least=1),
    "attn_implementation": choice("sdpa", "eager", "flash_attention_2", "flash_attention_3"),
    "fused_kernels": optional(choice("liger", "compile")),
    "init_std": number(above=0, most=1),
    "projector_init": choice("normal", "matched"),
    "dropout": share(),
    "residual_dropout": share(),
    "codebook_update": choice("shared", "separate", "tokenizer_only"),
    "alignment_pooling": choice("last", "mean"),
    "item_head": boolean(),
    "item_input": boolean(),
    "item_repeats": boolean(),
    "item_decoder_layers": integer(0),
    "item_decoder_size": integer(1),
    "item_dropout": share(),
    "item_vector_dropout": number(least=0, most=1),
    # Users
    "user_codes": integer(0, 16),
    # Texts
    "tasks": optional(fields(weight(), "like {title_to_codes: 0.5}: tasks and weights")),
    "mixed_tasks": boolean(),
    "task_epochs": integer(0, LONGEST),
    "task_tokens": integer(16, 2**24),
    "task_history": integer(1, 1000),
    "task_text_tokens": integer(1, 10_000),
    "task_holdout": share(),
    "description_field": text("a field of the .item file"),
    "prompts": text("a name in properties/prompts, or a file"),
    "new_item_codes": choice("tokenizer", "title"),
    # Losses
    "sia_weight": weight(),
    "psa_weight": weight(),
    "psa_fixed_weight": weight(),
    "psa_temperature": above_zero(),
    "item_weight": above_zero(),
    "item_smoothing": share(),
    "item_sample": optional(integer(1)),
    "distill_from": optional(path("the directory of an ensemble or a run")),
    "distill_weight": weight(),
    "distill_codes_weight": weight(),
    "distill_temperature": above_zero(),
    "distill_candidates": integer(2),
    "distill_ends": boolean(),
    # Schedule
    "schedule": listed(entry(*PHASES), f"a list of phases: {', '.join(PHASES)}", least=1),
    "epochs": integer(0, LONGEST),
    "cycle_epochs": integer(1, LONGEST),
    "warm_epochs": integer(0, LONGEST),
    "finetune_epochs": integer(0, LONGEST),
    "finetune_from": choice("best", "last"),
    "alternation_tokenizer_learning_rate": above_zero(),
    "code_slack": weight(),
    "learning_rate": above_zero(),
    "finetune_learning_rate": optional(above_zero()),
    "warmup_steps": either(
        integer(0),
        number(least=0, below=1),
        wanted="a number of steps, or a share below 1",
    ),
    "optimizer": choice("adamw", "adamw_8bit", "paged_adamw_8bit"),
    "heads_learning_rate": optional(above_zero()),
    "weight_decay": weight(),
    "clip_grad_norm": optional(
        mapping("like {'max_norm': 1.0}, or nothing", max_norm=above_zero(), norm_type=above_zero())
    ),
    "stopping_step": integer(0),
    "eval_step": integer(1),
    "valid_users": integer(0),
    "test_users": integer(0),
    # Preference
    "preference": entry("grpo", "dpo", "likelihood"),
    "preference_from": optional(path("the directory of a finished run")),
    "preference_epochs": integer(1, LONGEST),
    "preference_learning_rate": above_zero(),
    "preference_likelihood": weight(),
    "preference_group": integer(2, 1000),
    "preference_temperature": weight(),
    "preference_target": boolean(),
    "preference_reward": entry("hit", "ranked", "prefix", "item_head"),
    "preference_kl": weight(),
    "preference_beta": above_zero(),
    "preference_negatives": integer(1, 1000),
    "preference_hardest": integer(0, 15),
    "preference_disliked": optional(number()),
    "preference_max_kl": above_zero(),
    "preference_max_dead": number(least=0, most=1),
    "preference_min_coverage": number(least=0, most=1),
    "preference_min_recall": number(least=0, most=1),
    # Batches
    "max_tokens": integer(1),
    "gradient_accumulation_steps": integer(1, 10_000),
    "step_targets": optional(integer(1)),
    "training_rows": choice("sequences", "prefixes"),
    "window_overlap": share(),
    "cut_probability": number(least=0, most=1),
    "eval_batch_size": optional(integer(1)),
    # Ranking
    "ranking": optional(entry("beam", "exact", "fused", "head")),
    "num_beams": integer(1, 10_000),
    "repeat_score": optional(number(least=-1000, most=1000)),
    "candidates": integer(1),
    "item_score_weight": optional(above_zero()),
    "item_index_from": optional(integer(1)),
    "new_item_likeness": weight(),
    "new_item_cost": share(),
    "new_item_every": integer(1),
    # Execution
    "precision": choice("fp32", "bf16", "fp16"),
    "gradient_checkpointing": boolean(),
    "cuda_graphs": boolean(),
    "record_searches": boolean(),
    "memory_gib": optional(number(least=0.001, most=1_000_000)),
    "save_steps": integer(0),
}


def named_in(table: Iterable[str], key: str, value: Any) -> tuple[bool, str]:
    """The rule that the value of `key` is a name in `table`, for ``rules`` of the table's owner.

    Returns:
        Whether the rule is broken, and the message.
    """
    known = tuple(table)
    message = f"{key} ({value}) must be one of {', '.join(known)}{nearest(value, known)}"
    return value not in known, message
