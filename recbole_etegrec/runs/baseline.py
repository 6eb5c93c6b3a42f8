"""Runs RecBole's own models with RecBole's trainers, in a run directory of this plugin."""

import logging
from typing import Any

import recbole.trainer.trainer as recbole_trainer
import torch
from recbole.data import data_preparation
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.evaluator.collector import DataStruct
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.trainer import AbstractTrainer
from recbole.utils import get_trainer, init_seed
from torch.utils.tensorboard import SummaryWriter

from recbole_etegrec.config import Config, refusals_for_the_user
from recbole_etegrec.data import create_recbole_dataset
from recbole_etegrec.data.dataset_files import check_dataset_counts
from recbole_etegrec.data.seen_items import settle_history
from recbole_etegrec.evaluation.collector import RankingCollector
from recbole_etegrec.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)

CHECKPOINT = "best.pth"


def run_baseline(config: Config, run_dir: RunDirectory, saved: bool = True) -> dict[str, Any]:
    """Train and test one of RecBole's models.

    Returns:
        ``best_valid_score``, ``best_valid_result``, ``test_result`` and ``epochs``.
    """
    model, _, train_data, valid_data, test_data = _prepare(config, run_dir)
    logger.info(model)
    trainer = _trainer(config, model, run_dir)
    progress = config["show_progress"]
    best_valid_score, best_valid_result = trainer.fit(
        train_data, valid_data, saved=saved, show_progress=progress
    )
    if saved:
        _load_best(model, run_dir, config["device"])
    return {
        "best_valid_score": best_valid_score,
        "best_valid_result": best_valid_result,
        "test_result": trainer.evaluate(test_data, load_best_model=False, show_progress=progress),
        "epochs": len(trainer.train_loss_dict),
    }


def load_baseline(config: Config, run_dir: RunDirectory) -> tuple:
    """A trained model of RecBole and its data, as RecBole's `load_data_and_model` returns them.

    The checkpoint is a pickle, as RecBole writes it: load only runs you trust.
    """
    model, dataset, *loaders = _prepare(config, run_dir)
    _load_best(model, run_dir, config["device"])
    return config, model.eval(), dataset, *loaders


def baseline_rankings(
    config: Config,
    model: AbstractRecommender,
    loader: AbstractDataLoader,
    train_data: AbstractDataLoader,
    run_dir: RunDirectory,
) -> DataStruct:
    """Collect the rankings of a trained model of RecBole, for RecBole's evaluator."""
    trainer = _trainer(config, model, run_dir)
    trainer.eval_collector.data_collect(train_data)
    trainer.evaluator.evaluate = lambda collected: collected
    return trainer.evaluate(loader, load_best_model=False)


def _trainer(config: Config, model: AbstractRecommender, run_dir: RunDirectory) -> AbstractTrainer:
    # RecBole opens ./log_tensorboard for every trainer; this run has a place of its own.
    recbole_trainer.get_tensorboard = lambda _: SummaryWriter(run_dir.path / "tensorboard")
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.saved_model_file = str(run_dir.path / CHECKPOINT)
    trainer.eval_collector = RankingCollector(config)
    return trainer


def _prepare(config: Config, run_dir: RunDirectory) -> tuple:
    config["checkpoint_dir"] = str(run_dir.path)
    init_seed(config["seed"], config["reproducibility"])
    with refusals_for_the_user("dataset"):
        dataset = create_recbole_dataset(config)
        logger.info(dataset)
        check_dataset_counts(dataset, config["dataset_counts"])
        loaders = settle_history(config, data_preparation(config, dataset))
    init_seed(config["seed"], config["reproducibility"])
    model = config.model_class(config, loaders[0]._dataset).to(config["device"])
    return model, dataset, *loaders


def _load_best(model: AbstractRecommender, run_dir: RunDirectory, device: torch.device) -> None:
    """Load the saved weights; some trainers save none, and the model then stays as it is."""
    path = run_dir.path / CHECKPOINT
    if not path.is_file():
        return
    # RecBole pickles its config into the file, and its own reading of it is refused for that.
    checkpoint = torch.load(path, map_location=device, weights_only=False)
    model.load_state_dict(checkpoint["state_dict"])
    model.load_other_parameter(checkpoint.get("other_parameter"))
