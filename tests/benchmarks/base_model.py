"""A pretrained decoder under an overlay: the memory plan against what is measured, and the speed.

Neither memory nor speed depends on the values of weights, so random ones of the right shape are
written to a directory and loaded from there, as downloaded ones would be.

    python -m tests.benchmarks.base_model llama2_7b_rtx5090 --data_path=DIR

Arguments after the overlay are those of a run. `--shape=FILE.json` takes the shape of another
decoder (a configuration of transformers) than the overlay's base_model; `--steps=N` (10) are timed.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel

from recbole_etegrec.cli import parse_arguments
from recbole_etegrec.config import Config, properties_dir
from recbole_etegrec.data import embedding_width
from recbole_etegrec.memory_plan import GIB, MemoryPlan
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.model.build import autocast
from recbole_etegrec.quick_start import _load_data
from recbole_etegrec.run_directory import RunDirectory
from recbole_etegrec.trainer.engine import Engine
from recbole_etegrec.trainer.schedule import Stage


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("overlay")
    parser.add_argument("--shape", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    options, rest = parser.parse_known_args()
    values = parse_arguments(rest)
    base = Config("ETEGRecLlama", "Beauty", [options.overlay], values)["base_model"]
    shape = options.shape or properties_dir() / "base_model" / f"{base}.json"
    with tempfile.TemporaryDirectory() as folder:
        config = AutoConfig.for_model(**json.loads(shape.read_text("utf-8")))
        write_random_weights(config, folder)
        config = Config(
            "ETEGRecLlama", "Beauty", [options.overlay], {**values, "base_model": folder}
        )
        figures = measure(config, options.steps, Path(folder))
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


def write_random_weights(config, folder: str) -> None:
    """A directory as `from_pretrained` wants it, in bf16."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        AutoModel.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    if device == "cuda":
        torch.cuda.empty_cache()


def measure(config: Config, steps: int, folder: Path) -> dict:
    """Train and rank with what the config says, and put the figures beside the plan's."""
    device = config["device"]
    _, (train, _, test) = _load_data(config)
    plan = MemoryPlan(config, train, embedding_width(config, train._dataset))
    sys.stdout.write(f"{plan}\n")
    if device.type == "cuda" and config["memory_gib"]:
        share = config["memory_gib"] * GIB / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
    model = ETEGRecLlama(config, train._dataset).to(device)
    engine = Engine(config, model, RunDirectory(str(folder)))
    engine.match_scale(train.largest_piece())
    stage = Stage("recommender", "recommender", 1.0, config["sia_weight"], config["psa_weight"])
    engine.freeze_all_but("recommender")
    for group in engine.bare_optimizer("recommender").param_groups:
        group["lr"] = config["learning_rate"]
    train.split(config["gradient_accumulation_steps"])
    largest = [train.largest_piece()]
    batches = [pieces for pieces, _ in zip(train, range(steps), strict=False)]
    for pieces in (largest, *batches[:2]):
        engine.step(pieces, stage)
    figures = {"device": _name(device), "plan_training_gib": plan.training.total / GIB}
    _reset_peak(device)
    engine.step(largest, stage)
    figures["measured_training_gib"] = _peak(device)
    items, targets, started = 0, 0, _now(device)
    for pieces in batches:
        engine.step(pieces, stage)
        items += pieces[0].step_items
        targets += pieces[0].step_targets
    seconds = _now(device) - started
    tokens = items * config["code_length"] / seconds
    parameters = sum(p.numel() for p in model.recommender.backbone.parameters())
    rate = matmul_rate(device, torch.bfloat16 if config["precision"] == "bf16" else torch.float32)
    # Forward and backward through frozen weights are 2 operations each a weight and token.
    factor = 4 if config["tuning"] in ("lora", "qlora") else 6
    figures |= {
        "targets_per_second": targets / seconds,
        "tokens_per_second": tokens,
        "matmul_tflops": rate / 1e12,
        "model_flop_utilisation": factor * parameters * tokens / rate,
    }
    return figures | rank(config, model, test, plan)


@torch.no_grad()
def rank(config: Config, model: ETEGRecLlama, test, plan: MemoryPlan) -> dict:
    """Rank a batch of the longest histories, the worst case for memory."""
    device = config["device"]
    users = plan.evaluation.users
    rows = test._dataset[torch.arange(len(test._dataset.inter_feat))[-users:]].to(device)
    model.eval()
    with autocast(config):
        model.full_sort_predict(rows)
        _reset_peak(device)
        started = _now(device)
        model.full_sort_predict(rows)
        seconds = _now(device) - started
    return {
        "plan_evaluation_gib": plan.evaluation.total / GIB,
        "measured_evaluation_gib": _peak(device),
        "users_per_second": users / seconds,
    }


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    started = _now(device)
    for _ in range(10):
        a @ b
    return 10 * 2 * size**3 / (_now(device) - started)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / GIB if device.type == "cuda" else None


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    main()
