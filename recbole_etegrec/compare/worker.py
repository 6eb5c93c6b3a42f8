"""One run of a comparison, in a process of its own: ``python -m recbole_etegrec.compare.worker``.

The order comes on standard input, as YAML; measures of the run go to `measures.json` in its
directory, beside its result. Each run has its own process, so that peak memory is that run's.
"""

import hashlib
import logging
import os
import platform
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataset import Dataset
from recbole.evaluator import Evaluator
from recbole.evaluator.base_metric import TopkMetric
from recbole.evaluator.collector import DataStruct

from recbole_etegrec.compare.measures import (
    MEASURES,
    per_user_file,
    read_measures,
    write_error,
    write_measures,
)
from recbole_etegrec.compare.plan import HISTORIES
from recbole_etegrec.config import Config, is_ours
from recbole_etegrec.errors import Interrupted, TrainingError, UserError, unwritable
from recbole_etegrec.evaluation.evaluate import collect_rankings
from recbole_etegrec.quick_start import run
from recbole_etegrec.runs.baseline import baseline_rankings
from recbole_etegrec.runs.load import load_run
from recbole_etegrec.storage.atomic import atomic_file
from recbole_etegrec.storage.printable import one_line
from recbole_etegrec.storage.run_directory import RunDirectory


def work(config: dict[str, Any], path: Path, histories: list[str]) -> None:
    """Start, resume or keep a run; then test its model with each way of `histories`."""
    run_dir = RunDirectory(path)
    measures = read_measures(path)
    if measures.pop("error", None):
        write_measures(path, measures)
    if not run_dir.result.exists():
        (path / MEASURES).unlink(missing_ok=True)  # so that a run may begin here
        measures = {"test_result": {}}
        resume = is_ours(config)  # RecBole's own start anew
        run(config_dict={**config, "run_dir": str(path), "resume": resume})
        measures["memory_gib"] = _peak_memory_gib()
        measures["machine"] = _machine()
        write_measures(path, measures)
    for history in histories:
        if history not in measures["test_result"]:
            measures |= _measure(run_dir, history, measures["test_result"])
    write_measures(path, measures)


def _peak_memory_gib() -> float:
    """Peak memory of the GPU if one is used, else of this process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _machine() -> str:
    """The names of the CPU and of the GPU, where one is used."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text("utf-8").splitlines() if "model name" in line]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    found = f"{cpu}, {os.cpu_count()} cores"
    return f"{found}; {torch.cuda.get_device_name()}" if torch.cuda.is_initialized() else found


def _measure(run_dir: RunDirectory, history: str, known: dict[str, dict]) -> dict[str, Any]:
    """Measure a finished run's model and test it with one more of `HISTORIES`."""
    exclude = next(key for key, name in HISTORIES.items() if name == history)
    config, model, dataset, train_data, _, test_data = load_run(
        str(run_dir.path), {"exclude_history": exclude}
    )
    if not isinstance(test_data, FullSortEvalDataLoader):  # nothing is excluded, no user ranked
        result = run_dir.read_result()["test_result"]
    else:
        if is_ours(config):
            collected = collect_rankings(model, test_data, train_data._dataset, config)
        else:
            collected = baseline_rankings(config, model, test_data, train_data, run_dir)
        result = {k: float(v) for k, v in Evaluator(config).evaluate(collected).items()}
        _write_per_user(config, test_data, collected, per_user_file(run_dir.path, history))
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **_tested(test_data._dataset),
        # Without the padding. Interactions are not counted: RecBole's own sequential models have
        # made rows of them, without each user's first.
        "dataset": {"users": dataset.user_num - 1, "items": dataset.item_num - 1},
        "test_result": {**known, history: result},
    }


def _tested(dataset: Dataset) -> dict[str, Any]:
    """Count the tested pairs of user and item; their digest must be the same for all models."""
    columns = [
        dataset.id2token(field, dataset.inter_feat[field].numpy())
        for field in (dataset.uid_field, dataset.iid_field)
    ]
    pairs = sorted(zip(*columns, strict=True))
    return {"pairs": len(pairs), "digest": hashlib.sha256(repr(pairs).encode()).hexdigest()}


def _write_per_user(
    config: Config, loader: FullSortEvalDataLoader, collected: DataStruct, path: Path
) -> None:
    """Write the validation metric of each user, by the user's token, if it is a top-K metric."""
    name, _, cutoff = config["valid_metric"].lower().partition("@")
    metric = Evaluator(config).metric_class.get(name)
    if not isinstance(metric, TopkMetric):
        return
    metric.topk_result = lambda _, values: values  # [users, K] in place of their means
    values = metric.calculate_metric(collected)[:, int(cutoff) - 1]
    dataset = loader._dataset
    ids = dataset.inter_feat[dataset.uid_field] if loader.is_sequential else loader.uid_list
    tokens = dataset.id2token(dataset.uid_field, ids.numpy())
    means = pd.Series(values, index=tokens).groupby(level=0).mean()
    with atomic_file(path) as fresh, fresh.open("wb") as file:
        np.savez(file, users=means.index.to_numpy(dtype=str), values=means.to_numpy())


def _fail(path: Path, message: str) -> int:
    """Note why the run has failed; a full disk or a damaged file may have no room for that."""
    with suppress(OSError, UserError):
        write_error(path, message)
    return 1


def main() -> int:
    """Do what the order says; returns the exit code."""
    order = yaml.safe_load(sys.stdin)
    if order is None:  # the comparison was killed before it had said what to do
        return 1
    path = Path(order["path"])
    try:
        with RunDirectory(path).held():
            return _told(order, path)
    except UserError as error:  # another process holds it, and writes its own `measures.json`
        sys.stderr.write(f"error: {one_line(str(error))}\n")
        return 2


def _told(order: dict[str, Any], path: Path) -> int:
    """Do it; a failure is written to `measures.json`."""
    try:
        work(order["config"], path, order["histories"])
    except KeyboardInterrupt as error:
        return 128 + (error.number if isinstance(error, Interrupted) else 2)
    except (UserError, TrainingError) as error:
        return _fail(path, str(error))
    except Exception as error:
        if message := isinstance(error, OSError) and unwritable(error):
            logging.getLogger(__name__).error(message)
        else:
            logging.getLogger(__name__).exception("the run failed")
        return _fail(path, message or f"{type(error).__name__}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
