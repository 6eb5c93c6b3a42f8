"""What the keys of training must be together: schedule, optimizer, precision."""

from collections.abc import Iterator
from importlib.util import find_spec

from recbole_etegrec.config import Config
from recbole_etegrec.config.checks import launched_with

FAST = 0.002  # a learning rate above which pretrained weights are lost


def rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Pairs (whether it is broken, message), one for each rule."""
    yield (
        config["joint"] and config["cycle_epochs"] < 2,
        f"joint ({config['joint']}) needs cycles with an epoch of each module: cycle_epochs >= 2",
    )
    yield (
        config["restart_recommender"] and not config["finetune_epochs"],
        f"restart_recommender ({config['restart_recommender']}) needs a final stage: "
        "finetune_epochs >= 1",
    )
    optimizer, tuning = config["optimizer"], config["tuning"]
    yield (
        optimizer != "adamw" and find_spec("bitsandbytes") is None,
        f"optimizer ({optimizer}) needs the package bitsandbytes: pip install bitsandbytes",
    )
    yield (
        optimizer == "paged_adamw_8bit" and config["device"].type != "cuda",
        "optimizer (paged_adamw_8bit) moves states between GPU and CPU: it needs a GPU",
    )
    yield (
        launched_with("FSDP") and (tuning == "qlora" or optimizer != "adamw"),
        f"distributed_type (FSDP) takes neither tuning qlora ({tuning}) nor an 8-bit optimizer "
        f"({optimizer}): start with properties/accelerate/ddp_bf16.yaml",
    )
    yield (
        config["precision"] == "fp16" and config["device"].type == "cpu",
        "precision (fp16) needs a GPU: choose bf16 or fp32 on the CPU",
    )


def advice(config: Config) -> Iterator[str]:
    """What is allowed but hardly ever wanted, a line each."""
    base = config["base_model"]
    rate, final_rate = config["learning_rate"], config["finetune_learning_rate"]
    if base and max(rate, final_rate) > FAST:
        yield (
            f"learning_rate ({rate}) and finetune_learning_rate ({final_rate}) suit a decoder from "
            f"scratch: base_model ({base}) wants 1e-4 to 1e-3, as in the overlays"
        )
