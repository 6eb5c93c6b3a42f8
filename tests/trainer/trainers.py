"""Real trainers of small models, and single stages of them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer import ETEGRecTrainer
from recbole_etegrec.trainer.schedule import Stage
from recbole_etegrec.trainer.trainer import _constant
from tests.helpers import Loaders, small_config, small_model

NO_STAGES = {"tokenizer_epochs": 0, "epochs": 0, "finetune_epochs": 0}
BOOKS = "recommender.code_embedding.codebooks"
METRICS = {"metrics": ["Recall", "NDCG", "MRR"], "topk": [1, 5, 20], "valid_metric": "NDCG@5"}


def make_trainer(data_path: str, run_dir: Path, **more) -> tuple[ETEGRecTrainer, Loaders]:
    config = small_config(data_path, **more)
    model, loaders = small_model(config)
    return ETEGRecTrainer(config, model, RunDirectory.create(run_dir)), loaders


def ready_trainer(data_path: str, run_dir: Path, **more) -> ETEGRecTrainer:
    """A trainer that knows its data and has run no stage."""
    trainer, loaders = make_trainer(data_path, run_dir, **NO_STAGES, **more)
    worst = trainer.best_valid_score
    trainer.fit(loaders.train, loaders.valid)
    assert trainer.progress.epochs_done == 0
    trainer.best_valid_score, trainer.best_valid_result = worst, None
    trainer.keeper.best_state = None
    return trainer


def run_stages(
    trainer: ETEGRecTrainer, *stages: Stage, rate: float = 0.01, schedule: Callable = _constant
) -> None:
    """Run stages with fresh optimizers, after whatever has been run."""
    trainer.keeper.progress = replace(trainer.progress, index=0, stale=0)
    trainer._run(list(stages), rate, schedule)


def metrics_lines(trainer: ETEGRecTrainer) -> list[dict]:
    """The records of epochs; that of the first codes comes between them."""
    lines = map(json.loads, trainer.run_dir.metrics.read_text().splitlines())
    return [line for line in lines if line["phase"] != "codes"]


def of_module(names, module: str) -> set[str]:
    return {name for name in names if name.startswith(module + ".")}
