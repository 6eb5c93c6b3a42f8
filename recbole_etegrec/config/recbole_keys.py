"""The table of RecBole's keys: what a value of each must be, for any model.

The keys are those of RecBole's ``overall.yaml`` and ``dataset/sample.yaml`` and those that it reads
although no YAML names them. What the models of RecBole take besides is in YAML files of RecBole,
from whose defaults and comments :func:`model_keys` makes a table of what can safely be said.
"""

import codecs
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from recbole_etegrec.config.kinds import (
    Key,
    above_zero,
    boolean,
    choice,
    distinct,
    either,
    fields,
    integer,
    interval,
    listed,
    mapping,
    number,
    optional,
    path,
    separator,
    text,
    weight,
    worded,
)

METRICS = ("Recall", "NDCG", "MRR", "Hit", "Precision", "MAP", "GAUC", "AUC", "LogLoss", "MAE")
METRICS += ("RMSE", "ItemCoverage", "AveragePopularity", "ShannonEntropy", "GiniIndex")
METRICS += ("TailPercentage",)

_LONGEST = 10_000  # items of a history, items ranked, items sampled
_WIDEST = 2**16


def _metric() -> Key:
    return worded(*METRICS, wanted=f"one of RecBole's metrics: {', '.join(METRICS)}")


def _valid_metric() -> Key:
    def fits(value: Any) -> bool:
        name, at, cutoff = value.partition("@") if type(value) is str else ("", "", "")
        return _metric().takes(name) and (not at or bool(re.fullmatch("[1-9][0-9]{0,4}", cutoff)))

    return Key("str", "a metric, such as NDCG@10", fits, names=METRICS)


def _ratios() -> Key:
    wanted = "three numbers for training, validation and test, the first above 0"
    shares = listed(weight(), wanted, least=3, most=3)
    return replace(shares, fits=lambda v: shares.takes(v) and v[0] > 0)


def _split() -> Key:
    names = ("valid_and_test", "valid_only", "test_only")
    wanted = "one of {'LS': 'valid_and_test'}, {'RS': [8, 1, 1]} and {'TS': [8, 1, 1]}"
    key = mapping(wanted, LS=choice(*names), RS=_ratios(), TS=_ratios())
    return replace(key, fits=lambda v: isinstance(v, dict) and len(v) == 1)


def _mode() -> Key:
    wanted = "full, labeled, or uni or pop with a number from 1 to 10000, such as uni100"
    pattern = "full|labeled|(uni|pop)(10000|[1-9][0-9]{0,3})"
    name = Key("str", wanted, lambda v: type(v) is str and bool(re.fullmatch(pattern, v)))
    both = mapping(wanted, valid=name, test=name)
    return Key(
        "str, dict", wanted, lambda v: both.fits(v) if isinstance(v, dict) else name.fits(v),
        parts=both.parts,
    )  # fmt: skip


def _encoding() -> Key:
    def fits(value: Any) -> bool:
        try:
            return type(value) is str and codecs.lookup(value)._is_text_encoding
        except (LookupError, ValueError):
            return False

    return Key("str", "an encoding of text that Python knows, such as utf-8", fits)


def _devices() -> Key:
    numbers = listed(integer(0, 1023), "numbers")
    named = Key("str", "names", lambda v: type(v) is str and bool(re.fullmatch(r"[\w:/, -]*", v)))
    return either(named, integer(-1, 1023), numbers, wanted="the numbers of GPUs, such as 0,1")


def _names(wanted: str = "a list of names of fields") -> Key:
    return listed(text(), wanted)


def _columns(**needed: Key) -> Key:
    one = optional(either(choice("*"), _names(), wanted="a list of fields, or '*' for all"))
    wanted = "like {'inter': [user_id, item_id, timestamp]}: suffixes of files, and fields of each"
    return replace(fields(one, wanted), parts={**needed, "*": one})


def _load_col() -> Key:
    key = _columns()
    return optional(replace(key, fits=lambda v: key.fits(v) and "inter" in v))


def _filters() -> Key:
    tokens = listed(either(text(), number(), wanted="a value"), "values")
    return fields(
        either(interval(), tokens, wanted="an interval in quotes, such as '[3,inf)', or tokens"),
        "like {'rating': '[3,inf)'}: fields, and the interval that is kept of each",
    )


RECBOLE_KEYS: dict[str, Key] = {
    "model": text("the name of a model"),
    "dataset": either(text(), integer(0), wanted="the name of a dataset"),
    # The run and the machine
    "run_dir": optional(path("a directory")),
    "resume": optional(either(boolean(), path(), wanted="True, False, or the directory of a run")),
    "nproc": optional(integer(1, 1024)),
    "world_size": optional(integer(-1, 1024)),
    "gpu_id": _devices(),
    "worker": integer(0, 1024),
    "use_gpu": boolean(),
    "seed": integer(0, 2**32 - 1),
    "state": worded("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"),
    "reproducibility": boolean(),
    "data_path": path("a folder"),
    "checkpoint_dir": path("a folder"),
    "config_file": optional(path()),
    "show_progress": boolean(),
    "save_dataset": boolean(),
    "dataset_save_path": optional(path()),
    "save_dataloaders": boolean(),
    "dataloaders_save_path": optional(path()),
    "log_wandb": boolean(),
    "wandb_project": text(),
    "shuffle": boolean(),
    # Training
    "epochs": integer(0, 100_000),
    "train_batch_size": integer(1),
    "learner": worded("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam"),
    "learning_rate": above_zero(),
    "train_neg_sample_args": optional(
        mapping(
            "like {'distribution': 'uniform', 'sample_num': 1}, or nothing",
            distribution=optional(choice("uniform", "popularity", "None")),
            sample_num=integer(1, _LONGEST),
            alpha=number(),
            dynamic=boolean(),
            candidate_num=integer(0, _LONGEST),
        )
    ),
    "eval_step": integer(0),
    "stopping_step": integer(0),
    "clip_grad_norm": optional(
        mapping("like {'max_norm': 1.0}, or nothing", max_norm=above_zero(), norm_type=above_zero())
    ),
    "weight_decay": weight(),
    "loss_decimal_place": integer(0, 20),
    "require_pow": boolean(),
    "enable_amp": boolean(),
    "enable_scaler": boolean(),
    "transform": optional(
        choice("mask_itemseq", "inverse_itemseq", "crop_itemseq", "reorder_itemseq", "user_defined")
    ),
    # Evaluation
    "eval_args": mapping(
        "like {'mode': 'full'}: split, group_by, order and mode",
        split=_split(),
        group_by=optional(choice("user", "none")),
        order=choice("TO", "RO"),
        mode=_mode(),
    ),
    "repeatable": boolean(),
    "metrics": either(
        _metric(),
        distinct(listed(_metric(), "metrics", least=1)),
        wanted=f"RecBole's metrics, each once, such as [Recall, NDCG], of {', '.join(METRICS)}",
    ),
    "topk": either(
        integer(1, _LONGEST),
        distinct(listed(integer(1, _LONGEST), "numbers", least=1)),
        wanted="a list of different whole numbers from 1 to 10000, such as [5, 10]",
    ),
    "valid_metric": _valid_metric(),
    "valid_metric_bigger": boolean(),
    "eval_batch_size": integer(1),
    "metric_decimal_place": integer(0, 20),
    "exclude_history": optional(boolean()),
    "tail_ratio": optional(weight()),
    # Files of data
    "download": optional(text("a name of RecBole's list of datasets, or an address")),
    "dataset_counts": optional(
        mapping(
            "like {'users': 5, 'items': 5, 'interactions': 25}",
            **{name: integer(0) for name in ("users", "items", "interactions")},
        )
    ),
    "encoding": _encoding(),
    "field_separator": separator(),
    "seq_separator": separator(),
    "USER_ID_FIELD": text("the name of a field"),
    "ITEM_ID_FIELD": text("the name of a field"),
    "RATING_FIELD": text("the name of a field"),
    "TIME_FIELD": text("the name of a field"),
    "LABEL_FIELD": text("the name of a field"),
    "ITEM_LIST_LENGTH_FIELD": text("the name of a field"),
    "POSITION_FIELD": text("the name of a field"),
    "HEAD_ENTITY_ID_FIELD": text("the name of a field"),
    "TAIL_ENTITY_ID_FIELD": text("the name of a field"),
    "RELATION_ID_FIELD": text("the name of a field"),
    "ENTITY_ID_FIELD": text("the name of a field"),
    "NEG_PREFIX": text("the beginning of a name"),
    "LIST_SUFFIX": text("the end of a name"),
    "MAX_ITEM_LIST_LENGTH": integer(1, _LONGEST),
    "seq_len": optional(fields(integer(1, _LONGEST), "like {'title': 20}: fields, and lengths")),
    "threshold": optional(fields(number(), "like {'rating': 4}: a field, and a number")),
    "numerical_features": _names(),
    "load_col": _load_col(),
    "unload_col": optional(_columns()),
    "unused_col": optional(_columns()),
    "additional_feat_suffix": optional(
        either(text(), _names(), wanted="a suffix of files, or a list of them")
    ),
    "benchmark_filename": optional(
        distinct(listed(text(), "three parts, such as [train, valid, test]", least=3, most=3))
    ),
    # Filters and features
    "rm_dup_inter": optional(choice("first", "last")),
    "val_interval": optional(_filters()),
    "filter_inter_by_user_or_item": boolean(),
    "user_inter_num_interval": optional(interval()),
    "item_inter_num_interval": optional(interval()),
    "entity_kg_num_interval": optional(interval()),
    "relation_kg_num_interval": optional(interval()),
    "kg_reverse_r": boolean(),
    "alias_of_user_id": optional(_names()),
    "alias_of_item_id": optional(_names()),
    "alias_of_entity_id": optional(_names()),
    "alias_of_relation_id": optional(_names()),
    "preload_weight": optional(fields(text(), "like {'ent_id': 'ent_emb'}: fields of two kinds")),
    "normalize_field": optional(_names()),
    "normalize_all": optional(boolean()),
    "discretization": optional(
        fields(fields(Key("", "", lambda v: True), "settings"), "fields, and settings of each")
    ),
    "token_num_threshold": integer(0),
    "convert_token_to_onehot": boolean(),
    "double_tower": optional(boolean()),
}

_SIZES = re.compile(r"(^|_)(size|dim|dimension|heads?|hidden|factor_num|out_dims?|rank)(_|$)")
_LAYERS = re.compile(r"(^|_)(n_layers|num_layers|n_hops?|depth|layer_num)$")
_SHARES = re.compile(r"(^|_)(dropout|drop|dropout_prob|dropout_probs|drop_ratio)(_|$)|_dropout")
_NAMES = {"hidden_act": ("gelu", "relu", "swish", "tanh", "sigmoid")}
_RANGE = re.compile(r"^(\w+):.*[Rr]ang(?:e|ing) in `*\[([^\]]+)\]", re.MULTILINE)


def model_keys(defaults: Mapping[str, Any], source: str) -> dict[str, Key]:
    """What can safely be said of a model's own keys, from the YAML file that RecBole has for it.

    A value is of the type of its default, numbers are finite, sizes are above 0, dropout is from 0
    to 1, and a name is one of those in the comment on its key.

    Args:
        defaults: what the file says.
        source: its text.
    """
    names = {
        key: tuple(name.strip(" '\"") for name in listing.split(","))
        for key, listing in _RANGE.findall(source)
    }
    found = {}
    for key, default in defaults.items():
        if key in RECBOLE_KEYS:
            continue
        known = names.get(key, _NAMES.get(key, ()))
        kind = choice(*known) if default in known else _like(key, default)
        if kind is not None:
            found[key] = kind
    return found


def _like(key: str, default: Any) -> Key | None:
    """The kind of which a key's default is, or None where it says nothing."""
    if type(default) is bool:
        return boolean()
    if type(default) in (int, float):
        return _quantity(key, default)
    if type(default) is list and default:
        inner = _like(key, default[0])
        return inner and listed(inner, f"a list, each of it {inner.wanted}")
    if type(default) is str and default:
        return text()
    return None


def _quantity(key: str, default: int | float) -> Key:
    if _SHARES.search(key):
        return number(least=0, most=1)
    if type(default) is int and _LAYERS.search(key):
        return integer(0, 1000)
    if type(default) is int and _SIZES.search(key):
        return integer(1, _WIDEST)
    return number()
