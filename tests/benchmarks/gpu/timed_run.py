"""One run with the seconds of its parts: ``python -m tests.benchmarks.gpu.timed_run < ORDER``.

The order is JSON: ``values`` of the configuration with its ``run_dir``, and ``histories``, whether
to test the model with the items of histories kept and excluded. What is found goes to `timed.json`
in the run's directory.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

from recbole_etegrec import quick_start
from recbole_etegrec.config.compat import versions
from recbole_etegrec.evaluation.evaluate import evaluate
from recbole_etegrec.runs.load import load_run
from recbole_etegrec.trainer import ETEGRecTrainer

FILE = "timed.json"
seconds: dict[str, float] = defaultdict(float)


def timed(name: str, function: Callable) -> Callable:
    """The function, whose seconds are added up under a name."""

    def call(*arguments, **options):
        started = _now()
        result = function(*arguments, **options)
        seconds[name] += _now() - started
        return result

    return call


class _TimedTrainer(ETEGRecTrainer):
    def run_phase(self, phase):
        timed(phase.name, super().run_phase)(phase)

    def evaluate(self, *arguments, **options):
        return timed("test", super().evaluate)(*arguments, **options)


def main() -> None:
    """Do what the order says."""
    order = json.load(sys.stdin)
    quick_start.ETEGRecTrainer = _TimedTrainer
    quick_start.vectors_to_train_with = timed("embeddings", quick_start.vectors_to_train_with)
    quick_start.make_model = timed("codebooks", quick_start.make_model)  # k-means, above all
    outcome = timed("run", quick_start.run)(config_dict=order["values"])
    found = {
        "seconds": seconds,
        "valid": outcome["best_valid_result"],
        "test": outcome["test_result"],
        "versions": versions(),
    }
    if torch.cuda.is_initialized():
        found["device"] = torch.cuda.get_device_name()
        found["peak_gib"] = torch.cuda.max_memory_reserved() / 2**30
    if order["histories"]:
        found["histories"] = {
            name: _test(outcome["run_dir"], exclude)
            for name, exclude in (("kept", False), ("excluded", True))
        }
    (Path(outcome["run_dir"]) / FILE).write_text(json.dumps(found, indent=1) + "\n")


def _test(run_dir: str, exclude: bool) -> dict[str, float]:
    config, model, _, train, _, test = load_run(run_dir, {"exclude_history": exclude})
    return evaluate(model, test, train._dataset, config)


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
