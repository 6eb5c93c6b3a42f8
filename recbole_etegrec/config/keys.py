"""The table of the plugin's keys: what a value of each must be.

The table looks at one value at a time. What must hold between keys stands beside the part that it
concerns, as ``rules(config)``. This module imports nothing heavy, so that a wrong value can be
refused at once.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from recbole_etegrec.errors import UserError, nearest


@dataclass(frozen=True)
class Key:
    """What a value of one key must be.

    Attributes:
        kind: the type, in the words of ``properties/model/ETEGRecLlama.yaml``.
        wanted: what the value must be, as the end of the sentence "KEY (VALUE) must be ...".
        fits: whether a value is so.
        optional: whether it may be left empty.
        names: the values there are, where they are names.
    """

    kind: str
    wanted: str
    fits: Callable[[Any], bool] = field(repr=False)
    optional: bool = False
    names: tuple = ()

    def takes(self, value: Any) -> bool:
        """Whether the key may have this value."""
        return (self.optional and value is None) or self.fits(value)


def whole(minimum: int) -> Key:
    """A whole number, `minimum` (0 or 1) or above."""
    wanted = "a whole number above 0" if minimum else "a whole number, 0 or above"
    return Key("int", wanted, lambda v: type(v) is int and v >= minimum)


def number(wanted: str, fits: Callable[[float], bool]) -> Key:
    """A number for which `fits` holds; `wanted` ends the sentence "must be a number"."""
    return Key("float", f"a number{wanted}", lambda v: type(v) in (int, float) and fits(v))


def above_zero() -> Key:
    """A number above 0, such as a learning rate."""
    return number(" above 0", lambda v: v > 0)


def weight() -> Key:
    """A number that may be 0."""
    return number(", 0 or above", lambda v: v >= 0)


def share() -> Key:
    """A share below 1."""
    return number(" in [0, 1)", lambda v: 0 <= v < 1)


def choice(*names: Any) -> Key:
    """One of some values."""
    known = f"one of {', '.join(map(str, names))}"
    kind = type(names[0])
    return Key(kind.__name__, known, lambda v: type(v) is kind and v in names, names=names)


def entry(*names: str) -> Key:
    """A name in a table of the package, such as `TOKENIZERS`; `names` are those that it comes with.

    More names can be registered in that table, so any text passes here. The part that owns the
    table refuses unknown names by its rule :func:`named_in`.
    """
    return replace(choice(*names), fits=lambda v: type(v) is str)


def listed(kind: type, wanted: str, *, least: int = 0) -> Key:
    """A list of at least `least` texts (`kind` str) or whole numbers above 0 (`kind` int)."""

    def fits(value: Any) -> bool:
        many = isinstance(value, (list, tuple)) and len(value) >= least
        return many and all(type(v) is kind and (kind is str or v > 0) for v in value)

    return Key("list", wanted, fits)


def text(wanted: str = "text") -> Key:
    """A text that is not empty."""
    return Key("str", wanted, lambda v: type(v) is str and v != "")


def optional(key: Key) -> Key:
    """The same key, which may also be left empty."""
    return replace(key, optional=True)


def _sources(value: Any) -> bool:
    """Whether a value could name sources of item embeddings, by the rule of :func:`entry`."""
    return isinstance(value, (str, list, tuple))


def _warmup(value: Any) -> bool:
    return (type(value) is int and value >= 0) or (type(value) is float and 0 <= value < 1)


def _clipping(value: Any) -> bool:
    """Whether a value can be the arguments of ``clip_grad_norm_``."""
    known = isinstance(value, dict) and value.keys() <= {"max_norm", "norm_type"}
    return known and all(type(v) in (int, float) and v > 0 for v in value.values())


SOURCES = ("collaborative", "file", "sasrec", "text")
PHASES = ("pretraining", "alternation", "joint", "final", "final_from_scratch")

KEYS: dict[str, Key] = {
    # Item embeddings
    "item_embedding": Key(
        "str, list", f"one of {', '.join(SOURCES)}, or a list of them", _sources, names=SOURCES
    ),
    "embedding_cache": text("a folder"),
    "semantic_hidden_size": whole(1),
    "cooccurrence_window": whole(1),
    "sasrec_epochs": whole(1),
    "sasrec_run": optional(text("the directory of a finished run of SASRec")),
    "text_model": optional(text("a hub id or a directory when item_embedding is 'text'")),
    "text_fields": optional(
        listed(
            str,
            "a list of fields of the .item file when item_embedding is 'text'",
            least=1,
        )
    ),
    "item_embedding_file": optional(text("an existing file when item_embedding is 'file'")),
    # Tokenizer
    "tokenizer": entry("rqvae", "rqkmeans"),
    "collision": choice("suffix", "sinkhorn"),
    "code_length": whole(1),
    "code_num": whole(1),
    "e_dim": whole(1),
    "tokenizer_hidden_sizes": listed(int, "a list of whole numbers above 0"),
    "beta": weight(),
    "tokenizer_epochs": whole(0),
    "tokenizer_batch_size": whole(1),
    "tokenizer_learning_rate": above_zero(),
    # Recommender
    "backbone": entry("llama", "t5"),
    "hidden_size": whole(1),
    "num_hidden_layers": whole(1),
    "num_attention_heads": whole(1),
    "head_size": optional(whole(1)),
    "intermediate_size": whole(1),
    "base_model": optional(text("a hub id, a directory or a .gguf file, or nothing")),
    "tuning": choice("full", "lora", "qlora", "frozen"),
    "lora_r": whole(1),
    "lora_alpha": optional(above_zero()),
    "lora_dropout": share(),
    "lora_target_modules": listed(str, "a list of names of linear layers", least=1),
    "attn_implementation": choice("sdpa", "eager", "flash_attention_2", "flash_attention_3"),
    "init_std": number(" above 0, 1 at most", lambda v: 0 < v <= 1),
    "projector_init": choice("normal", "matched"),
    "dropout": share(),
    "residual_dropout": share(),
    "codebook_update": choice("shared", "tokenizer_only"),
    "alignment_pooling": choice("last", "mean"),
    "item_head": choice(True, False),
    "item_input": choice(True, False),
    "item_dropout": share(),
    "item_vector_dropout": number(" from 0 to 1", lambda v: 0 <= v <= 1),
    # Losses
    "sia_weight": weight(),
    "psa_weight": weight(),
    "psa_temperature": above_zero(),
    "item_weight": above_zero(),
    "item_smoothing": share(),
    "item_sample": whole(1),
    # Schedule
    "schedule": replace(
        listed(str, f"a list of phases: {', '.join(PHASES)}", least=1), names=PHASES
    ),
    "epochs": whole(0),
    "cycle_epochs": whole(1),
    "warm_epochs": whole(0),
    "finetune_epochs": whole(0),
    "alternation_tokenizer_learning_rate": above_zero(),
    "learning_rate": above_zero(),
    "finetune_learning_rate": optional(above_zero()),
    "warmup_steps": Key("int, float", "a number of steps, or a share below 1", _warmup),
    "optimizer": choice("adamw", "adamw_8bit", "paged_adamw_8bit"),
    "heads_learning_rate": optional(above_zero()),
    "weight_decay": weight(),
    "clip_grad_norm": optional(Key("dict", "like {'max_norm': 1.0}, or nothing", _clipping)),
    "stopping_step": whole(0),
    "eval_step": whole(1),
    "valid_users": whole(0),
    # Batches
    "max_tokens": whole(1),
    "gradient_accumulation_steps": whole(1),
    "training_rows": choice("sequences", "prefixes"),
    "window_overlap": share(),
    "cut_probability": number(" from 0 to 1", lambda v: 0 <= v <= 1),
    "eval_batch_size": whole(1),
    # Ranking
    "ranking": optional(entry("beam", "exact", "fused", "head")),
    "num_beams": whole(1),
    "candidates": whole(1),
    "item_score_weight": optional(above_zero()),
    # Execution
    "precision": choice("fp32", "bf16", "fp16"),
    "gradient_checkpointing": choice(True, False),
    "memory_gib": optional(above_zero()),
    "save_steps": whole(0),
}

# Keys of RecBole of which the plugin's models ask more than RecBole does.
RECBOLE_KEYS: dict[str, Key] = {"seed": whole(0), "MAX_ITEM_LIST_LENGTH": whole(1)}


def check_values(values: Mapping[str, Any], keys: Iterable[str] | None = None) -> None:
    """Look at each value alone.

    Args:
        values: by key, as the plugin's models are configured; other keys are passed over.
        keys: those to look at, in place of all that are there.

    Raises:
        UserError: a value is not one that its key takes.
    """
    table = {**KEYS, **RECBOLE_KEYS}
    for name in table if keys is None else keys:
        if name in values and name in table and not table[name].takes(values[name]):
            raise UserError(f"{name} ({values[name]}) must be {table[name].wanted}")


def named_in(table: Iterable[str], key: str, value: Any) -> tuple[bool, str]:
    """The rule that the value of `key` is a name in `table`, for ``rules`` of the table's owner.

    Returns:
        Whether the rule is broken, and the message.
    """
    known = tuple(table)
    message = f"{key} ({value}) must be one of {', '.join(known)}{nearest(value, known)}"
    return value not in known, message
