"""What is refused before any work: values out of range, and such as contradict each other."""

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from recbole.evaluator import metric_information

from recbole_etegrec.errors import UserError, nearest

if TYPE_CHECKING:
    from recbole_etegrec.config import Config

CHOICES = {
    "collision": ("suffix", "sinkhorn"),
    "codebook_update": ("shared", "tokenizer_only"),
    "alignment_pooling": ("last", "mean"),
    "tuning": ("full", "lora", "qlora", "frozen"),
    "training_rows": ("sequences", "prefixes"),
    "projector_init": ("normal", "matched"),
    "attn_implementation": ("sdpa", "eager", "flash_attention_2", "flash_attention_3"),
    "optimizer": ("adamw", "adamw_8bit", "paged_adamw_8bit"),
    "gradient_checkpointing": (True, False),
    "joint": (True, False),
    "restart_recommender": (True, False),
}
COUNTS = ("tokenizer_epochs", "epochs", "warm_epochs", "finetune_epochs")
COUNTS += ("valid_users", "stopping_step", "save_steps", "max_bad_steps", "seed")
RATES = ("learning_rate", "finetune_learning_rate", "tokenizer_learning_rate")
RATES += ("alternation_tokenizer_learning_rate", "psa_temperature", "lora_alpha")
OPTIONAL = ("heads_learning_rate", "memory_gib", "head_size")
SHARES = ("dropout", "residual_dropout", "lora_dropout", "window_overlap")
WEIGHTS = ("beta", "sia_weight", "psa_weight", "weight_decay")
_FAST = 0.002  # a learning rate above which pretrained weights are lost

SIZES = (
    "semantic_hidden_size",
    "code_num",
    "code_length",
    "e_dim",
    "tokenizer_batch_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_size",
    "intermediate_size",
    "max_tokens",
    "cooccurrence_window",
    "sasrec_epochs",
    "cycle_epochs",
    "eval_step",
    "num_beams",
    "eval_batch_size",
    "gradient_accumulation_steps",
    "lora_r",
    "MAX_ITEM_LIST_LENGTH",
)


_NUMBERS = (
    (SIZES, lambda v: type(v) is int and v > 0, "a whole number above 0"),
    (COUNTS, lambda v: type(v) is int and v >= 0, "a whole number, 0 or above"),
    (RATES + OPTIONAL, lambda v: v > 0, "a number above 0"),
    (SHARES, lambda v: 0 <= v < 1, "a number in [0, 1)"),
    (("init_std",), lambda v: 0 < v <= 1, "a number above 0, 1 at most"),
    (("cut_probability",), lambda v: 0 <= v <= 1, "a number from 0 to 1"),
    (WEIGHTS, lambda v: v >= 0, "a number, 0 or above"),
)


def check_config(config: "Config") -> None:
    """Checks that hold for every model.

    Raises:
        UserError: `valid_metric` is not among the values that will be computed,
            `exclude_history` is no boolean, several processes are asked for in RecBole's way or
            for RecBole's models, DeepSpeed is, or `log_wandb` lacks its package.
    """
    if not config["topk"]:
        raise UserError("topk ([]) must name at least one K")
    name, _, cutoff = str(config["valid_metric"]).lower().partition("@")
    metrics = [metric.lower() for metric in config["metrics"]]
    if name not in metrics:
        raise UserError(f"valid_metric ({config['valid_metric']}) is not in metrics {metrics}")
    has_cutoff = any(need in ("rec.topk", "rec.items") for need in metric_information[name])
    if has_cutoff and cutoff not in map(str, config["topk"]):
        raise UserError(
            f"valid_metric ({config['valid_metric']}) needs its K in topk {config['topk']}"
        )
    if config["exclude_history"] not in (None, True, False):
        raise UserError(f"exclude_history ({config['exclude_history']}) must be True or False")
    _check_launch(config)
    if config["log_wandb"] and find_spec("wandb") is None:
        raise UserError("log_wandb (True) needs the package wandb: pip install wandb")


def _check_launch(config: "Config") -> None:
    """Ways to start several processes that cannot work."""
    if config["nproc"] not in (None, 1):
        raise UserError(
            f"nproc ({config['nproc']}): start several processes with "
            f"accelerate launch --num_processes={config['nproc']} run_recbole.py ..."
        )
    if "num_beams" not in config and PartialState().num_processes > 1:
        raise UserError(
            f"model {config['model']}: RecBole's own trainers know nothing of accelerate and would "
            "train one model a process; start without a launcher (one GPU), or use RecBole's own "
            "run_recbole.py --nproc"
        )
    if launched_with("DEEPSPEED"):
        raise UserError(
            "distributed_type (DEEPSPEED): codes and codebooks are rewritten between stages, and "
            "DeepSpeed keeps copies of its own; properties/accelerate/fsdp_bf16.yaml shards as well"
        )
    old_torch = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7)
    if launched_with("FSDP") and (old_torch or os.environ.get("FSDP_VERSION") != "2"):
        raise UserError("distributed_type (FSDP): needs fsdp_version 2 and torch 2.7 or later")
    if launched_with("MEGATRON_LM"):
        raise UserError("distributed_type (MEGATRON_LM) is not supported")


def launched_with(what: str) -> bool:
    """Whether the launcher was told to use one of ``FSDP``, ``DEEPSPEED`` or ``MEGATRON_LM``."""
    return os.environ.get(f"ACCELERATE_USE_{what}", "").lower() == "true"


def check_plugin_config(config: "Config") -> None:
    """Checks of the keys that only the plugin's models have.

    Raises:
        UserError: a value outside its choices, or two that contradict each other.
    """
    from recbole_etegrec.decoding import RANKERS
    from recbole_etegrec.recommender import BACKBONES, PRECISIONS
    from recbole_etegrec.tokenizer import TOKENIZERS

    tables = {"tokenizer": TOKENIZERS, "backbone": BACKBONES, "ranking": RANKERS}
    tables["precision"] = PRECISIONS
    tables = {key: tuple(table) for key, table in tables.items()}
    for key, choices in {**CHOICES, **tables}.items():
        if key in config and config[key] not in choices:
            known = ", ".join(map(str, choices))
            raise UserError(f"{key} ({config[key]}) must be one of {known}")
    for keys, fits, wanted in _NUMBERS:
        for key in keys:
            value = config[key]
            if key in OPTIONAL and value is None:
                continue
            number = type(value) in (int, float)
            if key in config and not (number and fits(value)):
                raise UserError(f"{key} ({value}) must be {wanted}")
    clip = config["clip_grad_norm"] or {}
    known = isinstance(clip, dict) and clip.keys() <= {"max_norm", "norm_type"}
    if not (known and all(type(v) in (int, float) and v > 0 for v in clip.values())):
        raise UserError(f"clip_grad_norm ({clip}) must be like {{'max_norm': 1.0}}, or nothing")
    sizes = config["tokenizer_hidden_sizes"]
    if not isinstance(sizes, (list, tuple)) or any(type(v) is not int or v < 1 for v in sizes):
        raise UserError(f"tokenizer_hidden_sizes ({sizes}) must be a list of whole numbers above 0")
    warmup = config["warmup_steps"]
    share = type(warmup) is float and 0 <= warmup < 1
    if not (share or (type(warmup) is int and warmup >= 0)):
        raise UserError(f"warmup_steps ({warmup}) must be a number of steps, or a share below 1")
    for broken, message in _contradictions(config):
        if broken:
            raise UserError(message)


def _contradictions(config: "Config") -> Iterator[tuple[bool, str]]:
    """Pairs (whether it is broken, message), one for each rule between keys."""
    from recbole_etegrec import decoding

    yield from decoding.rules(config)
    yield from _base_model_contradictions(config)
    if config["backbone"] == "t5":
        yield from _encoder_decoder_contradictions(config)
    hidden, heads = config["hidden_size"] or 0, config["num_attention_heads"] or 1
    yield (
        not config["head_size"] and hidden % heads != 0,
        f"hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads})",
    )
    size = config["head_size"] or hidden // heads
    yield (
        config["backbone"] == "llama" and not config["base_model"] and size % 2 == 1,
        f"head_size ({size}) must be even with backbone (llama): its positions turn pairs",
    )
    yield (
        config["joint"] and config["cycle_epochs"] < 2,
        f"joint ({config['joint']}) needs cycles with an epoch of each module: cycle_epochs >= 2",
    )
    yield (
        config["restart_recommender"] and not config["finetune_epochs"],
        f"restart_recommender ({config['restart_recommender']}) needs a final stage: "
        "finetune_epochs >= 1",
    )
    split, order = config["eval_args"]["split"], config["eval_args"]["order"]
    files = config["benchmark_filename"]
    whole = split == {"LS": "valid_and_test"}
    yield not (whole or files), f"eval_args: split ({split}) must be LS: valid_and_test"
    yield (
        files is not None and not (isinstance(files, (list, tuple)) and len(files) == 3),
        f"benchmark_filename ({files}) must name three parts, such as [train, valid, test]",
    )
    length = config["code_length"]
    yield length < 2, f"code_length ({length}) must be at least 2: semantic codes, collision code"
    yield order != "TO", f"eval_args: order ({order}) must be TO: sequences follow time"
    yield (
        config["precision"] == "fp16" and config["device"].type == "cpu",
        "precision (fp16) needs a GPU: choose bf16 or fp32 on the CPU",
    )
    yield from _item_embedding_contradictions(config)


def _item_embedding_contradictions(config: "Config") -> Iterator[tuple[bool, str]]:
    """Rules on the sources of item embeddings and on what each needs."""
    from recbole_etegrec.data.item_embedding import ITEM_EMBEDDINGS, embedding_sources

    sources, known = embedding_sources(config), tuple(ITEM_EMBEDDINGS)
    named = f"item_embedding ({config['item_embedding']})"
    yield not sources, f"{named} must name a source: {', '.join(known)}"
    for name in sources:
        choices = f"must be one of {', '.join(known)}, or a list of them{nearest(name, known)}"
        yield name not in known, f"{named} {choices}"
        yield sources.count(name) > 1, f"{named} names {name} more than once"
    file, run = config["item_embedding_file"], config["sasrec_run"]
    yield (
        "file" in sources and not (file and Path(file).is_file()),
        f"item_embedding_file ({file}) must be an existing file when item_embedding is 'file'",
    )
    width = config["semantic_hidden_size"]
    trained = "sasrec" in sources and not run
    yield trained and width % 2 != 0, f"semantic_hidden_size ({width}) must be even for sasrec"
    yield (
        "sasrec" in sources and bool(run) and not _finished_baseline(Path(run)),
        f"sasrec_run ({run}) must be the directory of a finished run of SASRec, with its best.pth",
    )
    if "text" in sources:
        yield from _text_contradictions(config)


def _finished_baseline(run: Path) -> bool:
    return all((run / name).is_file() for name in ("config.yaml", "result.json", "best.pth"))


def _text_contradictions(config: "Config") -> Iterator[tuple[bool, str]]:
    model, fields = config["text_model"], config["text_fields"]
    yield (
        not (isinstance(model, str) and model),
        f"text_model ({model}) must be a hub id or a directory when item_embedding is 'text'",
    )
    like_a_path = str(model).startswith((".", "~", "/")) or str(model).count("/") > 1
    yield like_a_path and not Path(model).is_dir(), f"text_model ({model}): no such directory"
    named = isinstance(fields, (list, tuple)) and fields and all(type(f) is str for f in fields)
    yield (
        not named,
        f"text_fields ({fields}) must be a list of fields of the .item file when item_embedding "
        "is 'text'",
    )


def _base_model_contradictions(config: "Config") -> Iterator[tuple[bool, str]]:
    """Rules on a pretrained decoder and on what needs a package or a GPU."""
    base, tuning, optimizer = config["base_model"], config["tuning"], config["optimizer"]
    yield (
        base is not None and not (isinstance(base, str) and base),
        f"base_model ({base}) must be a hub id, a directory or a .gguf file, or nothing",
    )
    yield (
        not base and tuning != "full",
        f"tuning ({tuning}) needs a base_model: a random decoder must learn as a whole",
    )
    names = config["lora_target_modules"]
    yield (
        not (isinstance(names, (list, tuple)) and names and all(type(n) is str for n in names)),
        f"lora_target_modules ({names}) must be a list of names of linear layers",
    )
    yield (
        str(base).endswith(".gguf") and find_spec("gguf") is None,
        f"base_model ({base}) needs the package gguf: pip install gguf",
    )
    no_bitsandbytes = find_spec("bitsandbytes") is None
    for key, value in (("tuning", tuning), ("optimizer", optimizer)):
        yield (
            value not in ("full", "lora", "frozen", "adamw") and no_bitsandbytes,
            f"{key} ({value}) needs the package bitsandbytes: pip install bitsandbytes",
        )
    yield (
        str(base).endswith(".gguf") and tuning == "qlora",
        f"tuning (qlora) cannot quantize base_model ({base}) once more: choose lora",
    )
    on_gpu = config["device"].type == "cuda"
    yield (
        optimizer == "paged_adamw_8bit" and not on_gpu,
        "optimizer (paged_adamw_8bit) moves states between GPU and CPU: it needs a GPU",
    )
    yield (
        launched_with("FSDP") and (tuning == "qlora" or optimizer != "adamw"),
        f"distributed_type (FSDP) takes neither tuning qlora ({tuning}) nor an 8-bit optimizer "
        f"({optimizer}): start with properties/accelerate/ddp_bf16.yaml",
    )
    attention, precision = config["attn_implementation"], config["precision"]
    flash = attention.startswith("flash")
    yield (
        flash and not _flash_available(attention),
        f"attn_implementation ({attention}) needs a GPU and the package flash-attn; sdpa uses the "
        "flash kernels of torch where it can",
    )
    yield (
        flash and precision == "fp32",
        f"attn_implementation ({attention}) needs precision bf16 or fp16",
    )


def _encoder_decoder_contradictions(config: "Config") -> Iterator[tuple[bool, str]]:
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


def advice(config: "Config") -> Iterator[str]:
    """What is allowed but hardly ever wanted, a line each."""
    base, rate = config["base_model"], config["finetune_learning_rate"]
    if base and max(rate, config["learning_rate"]) > _FAST:
        yield (
            f"learning_rate ({config['learning_rate']}) and finetune_learning_rate ({rate}) suit a "
            f"decoder from scratch: base_model ({base}) wants 1e-4 to 1e-3, as in the overlays"
        )
    if base and config["projector_init"] == "normal":
        yield (
            "projector_init (normal) lets codes enter at another scale than the tokens that "
            f"base_model ({base}) knows: matched starts lower"
        )


def _flash_available(attention: str) -> bool:
    from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

    if attention == "flash_attention_2":
        return is_flash_attn_2_available()
    return is_flash_attn_3_available()
