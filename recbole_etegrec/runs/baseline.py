"""Runs RecBole's own models with RecBole's trainers, in a run directory of this plugin."""

import logging
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import recbole.trainer.trainer as recbole_trainer
import torch
from recbole.data import data_preparation
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.interaction import Interaction
from recbole.evaluator.collector import DataStruct
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.trainer import AbstractTrainer
from recbole.utils import get_trainer, init_seed
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from recbole_etegrec.config import Config, refusals_for_the_user
from recbole_etegrec.data import create_recbole_dataset
from recbole_etegrec.data.dataset_files import check_dataset_counts
from recbole_etegrec.data.identity import Identity, known_ids
from recbole_etegrec.data.seen_items import settle_history
from recbole_etegrec.decoding import BatchFields, LogitRanker
from recbole_etegrec.errors import UserError
from recbole_etegrec.evaluation.collector import RankingCollector
from recbole_etegrec.runs.identity import items_gone, write_identity
from recbole_etegrec.runs.recbole_model import load_best, save_best
from recbole_etegrec.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def run_baseline(config: Config, run_dir: RunDirectory, saved: bool = True) -> dict[str, Any]:
    """Train and test one of RecBole's models.

    Returns:
        ``best_valid_score``, ``best_valid_result``, ``test_result`` and ``epochs``.
    """
    config["checkpoint_dir"] = str(run_dir.path)
    dataset, train_data, valid_data, test_data = _prepare(config)
    if saved:
        write_identity(run_dir, dataset.identity)
    model = _make_model(config, train_data)
    logger.info(model)
    trainer = _trainer(config, model, run_dir)
    progress = config["show_progress"]
    best_valid_score, best_valid_result = trainer.fit(
        train_data, valid_data, saved=saved, show_progress=progress
    )
    if saved:
        load_best(model, run_dir, config["device"])
    return {
        "best_valid_score": best_valid_score,
        "best_valid_result": best_valid_result,
        "test_result": trainer.evaluate(test_data, load_best_model=False, show_progress=progress),
        "epochs": len(trainer.train_loss_dict),
    }


def load_baseline(config: Config, run_dir: RunDirectory, identity: Identity) -> tuple:
    """A trained model of RecBole and its data, as RecBole's `load_data_and_model` returns them.

    Users and items have the ids of the run; see `load_run` for what has changed since.
    """
    dataset, loaders, gone = baseline_data(config, run_dir, identity)
    return config, baseline_model(config, run_dir, loaders[0], gone), dataset, *loaders


def baseline_data(config: Config, run_dir: RunDirectory, identity: Identity) -> tuple:
    """The data of a trained model of RecBole: dataset, loaders, and the ids of items gone."""
    config["checkpoint_dir"] = os.devnull  # RecBole unpickles datasets that it finds there
    with known_ids(identity.tokens) as changes:
        dataset, *loaders = _prepare(config)
    return dataset, loaders, items_gone(identity, changes, dataset)


def baseline_model(
    config: Config, run_dir: RunDirectory, train_data: AbstractDataLoader, gone: np.ndarray
) -> AbstractRecommender:
    """A trained model of RecBole, which does not rank items that are gone.

    Raises:
        UserError: it was not kept, or is damaged.
    """
    model = _make_model(config, train_data)
    if not isinstance(model, torch.nn.Module):
        raise UserError(
            f"run_dir {run_dir.path}: {config['model']} cannot be kept without a pickle"
        )
    load_best(model, run_dir, config["device"])
    if len(gone):
        _leave_out(model, torch.from_numpy(gone))
    return model.eval()


class BaselineRanking:
    """A sequential model of RecBole as a member of an ensemble; see `MemberModel`.

    Args:
        model: trained.
        config: its own.
        name: what messages call it.
    """

    precision = "fp32"

    def __init__(self, model: AbstractRecommender, config: Config, name: str):
        self.model, self.name = model, name
        self.fields = BatchFields(model.ITEM_ID, model.ITEM_SEQ, model.ITEM_SEQ_LEN)
        self.max_history = config["MAX_ITEM_LIST_LENGTH"]
        self.ranker = LogitRanker(self._logits, model.n_items)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """Of the model."""
        return self.model.parameters()

    def _logits(self, interaction: Interaction) -> torch.Tensor:
        """Scores of all items, histories padded to the width that RecBole gives them.

        Raises:
            UserError: the model wants to know more of a row than its history.
        """
        history = interaction[self.fields.history]
        padding = (0, self.max_history - history.shape[1])
        padded = {**interaction.interaction, self.fields.history: F.pad(history, padding)}
        try:
            scores = self.model.full_sort_predict(Interaction(padded))
        except KeyError as error:
            raise UserError(
                f"{self.name}: {type(self.model).__name__} ranks by more than the items of a "
                f"history ({error}), and cannot be a member of an ensemble; leave it out"
            ) from error
        return scores.view(len(history), -1)[:, : self.ranker.n_items]


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
    _keep_without_pickle(trainer, model, run_dir)
    trainer.eval_collector = RankingCollector(config)
    return trainer


def _keep_without_pickle(
    trainer: AbstractTrainer, model: AbstractRecommender, run_dir: RunDirectory
) -> None:
    """Have a trainer write files that can be read without running what they say."""

    def keep_pretrained(_epoch: int, path: str) -> None:
        torch.save({"state_dict": model.state_dict()}, path)  # what `pre_model_path` reads

    trainer.save_pretrained_model = keep_pretrained
    if isinstance(model, torch.nn.Module):
        trainer._save_checkpoint = lambda *_, **__: save_best(model, run_dir)
    else:
        trainer._save_checkpoint = lambda *_, **__: logger.warning("the model is not kept")


def _prepare(config: Config) -> tuple:
    init_seed(config["seed"], config["reproducibility"])
    with refusals_for_the_user("dataset"):
        dataset = create_recbole_dataset(config)
        dataset.identity = Identity.of(dataset)
        logger.info(dataset)
        check_dataset_counts(dataset, config["dataset_counts"])
        loaders = settle_history(config, data_preparation(config, dataset))
    return dataset, *loaders


def _make_model(config: Config, train_data: AbstractDataLoader) -> AbstractRecommender:
    init_seed(config["seed"], config["reproducibility"])
    with refusals_for_the_user(f"model {config['model']}"):
        return config.model_class(config, train_data._dataset).to(config["device"])


def _leave_out(model: AbstractRecommender, items: torch.Tensor) -> None:
    """Score some items -inf, whatever the model says of them."""
    rank, predict = model.full_sort_predict, model.predict

    def ranked(interaction: Interaction) -> torch.Tensor:
        scores = rank(interaction).view(len(interaction), -1)
        scores[:, items.to(scores.device)] = -torch.inf
        return scores

    def predicted(interaction: Interaction) -> torch.Tensor:
        scores = predict(interaction)
        out = torch.isin(interaction[model.ITEM_ID], items.to(scores.device))
        return scores.masked_fill(out, -torch.inf)

    model.full_sort_predict, model.predict = ranked, predicted
