"""Real trainers of small models, and single stages of them."""

import json
from pathlib import Path

from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer import ETEGRecTrainer
from recbole_etegrec.trainer.schedule import Phase, Stage
from tests.helpers import Loaders, small_config, small_model

NO_STAGES = {"tokenizer_epochs": 0, "epochs": 0, "finetune_epochs": 0}
RECOMMENDATION = {"recommendation": 1.0}
WEIGHTS = {  # of all objectives that count while a module trains
    "recommender": {**RECOMMENDATION, "sia": 0.1, "psa": 0.1},
    "tokenizer": {"sia": 0.1, "psa": 0.1, "quantization": 1.0},
    "both": {**RECOMMENDATION, "sia": 0.1, "psa": 0.1, "quantization": 1.0},
}
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
    trainer: ETEGRecTrainer, *stages: Stage, rate: float = 0.01, course: str = "constant"
) -> None:
    """Run stages with fresh optimizers, after whatever has been run."""
    config, name = trainer.config, stages[0].phase
    rates = {"tokenizer": config["alternation_tokenizer_learning_rate"], "recommender": rate}
    trainer.progress.enter(name, trainer.progress.epochs_done)
    trainer.run_phase(Phase(name, stages, rates, course, config["warmup_steps"]))


def metrics_lines(trainer: ETEGRecTrainer) -> list[dict]:
    """The records of epochs; that of the first codes comes between them."""
    lines = map(json.loads, trainer.run_dir.metrics.read_text().splitlines())
    return [line for line in lines if line["phase"] != "codes"]


def of_module(names, module: str) -> set[str]:
    return {name for name in names if name.startswith(module + ".")}
