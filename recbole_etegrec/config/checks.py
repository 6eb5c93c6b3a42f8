"""What is refused for any model, of the plugin or of RecBole, while its configuration is read."""

import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from accelerate import PartialState
from accelerate.utils import compare_versions, is_torch_version
from recbole.evaluator import metric_information

from recbole_etegrec.config.models import is_ours
from recbole_etegrec.errors import UserError

if TYPE_CHECKING:
    from recbole.config import Config


def check_config(config: "Config") -> None:
    """Checks that hold for every model.

    Raises:
        UserError: `valid_metric` is not among the values that will be computed, several processes
            are asked for in RecBole's way or for RecBole's models, DeepSpeed is, or `log_wandb`
            lacks its package.
    """
    name, _, cutoff = str(config["valid_metric"]).lower().partition("@")
    metrics = [metric.lower() for metric in config["metrics"]]
    if name not in metrics:
        raise UserError(f"valid_metric ({config['valid_metric']}) is not in metrics {metrics}")
    has_cutoff = any(need in ("rec.topk", "rec.items") for need in metric_information[name])
    if has_cutoff and cutoff not in map(str, config["topk"]):
        raise UserError(
            f"valid_metric ({config['valid_metric']}) needs its K in topk {config['topk']}"
        )
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
    if not is_ours(config) and PartialState().num_processes > 1:
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
    # Older ones shard what is to stay whole, or turn frozen weights into fp32.
    old = not (is_torch_version(">=", "2.7") and compare_versions("accelerate", ">=", "1.13"))
    if launched_with("FSDP") and (old or os.environ.get("FSDP_VERSION") != "2"):
        raise UserError(
            "distributed_type (FSDP): needs fsdp_version 2, torch 2.7 and accelerate 1.13 or later"
        )
    if launched_with("MEGATRON_LM"):
        raise UserError("distributed_type (MEGATRON_LM) is not supported")


def launched_with(what: str) -> bool:
    """Whether the launcher was told to use one of ``FSDP``, ``DEEPSPEED`` or ``MEGATRON_LM``."""
    return os.environ.get(f"ACCELERATE_USE_{what}", "").lower() == "true"
