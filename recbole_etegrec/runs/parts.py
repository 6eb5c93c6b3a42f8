"""What a run is made of, as its config says: its data and its model."""

import logging
from typing import Any

import torch
from recbole.utils import init_seed

from recbole_etegrec.config import Config, UnknownKeyError
from recbole_etegrec.config.models import TRAINED
from recbole_etegrec.data import ItemVectors, create_dataset, data_preparation
from recbole_etegrec.data.dataset_files import check_dataset_counts
from recbole_etegrec.data.identity import Identity
from recbole_etegrec.errors import UserError
from recbole_etegrec.model import MODELS, ETEGRecLlama
from recbole_etegrec.model.build import settle_codes
from recbole_etegrec.runs.identity import read_vectors
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer.checkpoint import load_model

logger = logging.getLogger(__name__)


def config_of_run(directory: RunDirectory, changes: dict[str, Any] | None = None) -> Config:
    """The config that a run was started with, some keys changed.

    Raises:
        UserError: `directory` is not a run's, or a run of a version with other keys.
    """
    recorded = directory.read_config()
    try:
        return Config(config_dict={**recorded, **(changes or {})})
    except UnknownKeyError as error:
        if error.key not in recorded:
            raise
        raise earlier_version(directory, error.key) from error


def earlier_version(directory: RunDirectory, key: str) -> UserError:
    """The refusal of a run whose config has a key that there is no more."""
    return UserError(
        f"run_dir {directory.path}: written by an earlier version, which had a key '{key}': "
        "train it anew"
    )


def load_data(config: Config) -> tuple:
    """Load the dataset of a config and its loaders: ``(dataset, (train, valid, test))``.

    What the config leaves to the catalogue is settled by it.

    Raises:
        UserError: the filters leave nothing, or a part of the split is empty.
    """
    init_seed(config["seed"], config["reproducibility"])
    dataset = create_dataset(config)
    logger.info(dataset)
    check_dataset_counts(dataset, config["dataset_counts"])
    if config["model"] in TRAINED:
        settle_codes(config, dataset.item_num)
    return dataset, data_preparation(config, dataset)


def make_model(
    config: Config, train_dataset, vectors: ItemVectors, *, start_codes: bool = True
) -> ETEGRecLlama:
    """Make a new model of a config; its random weights come from the config's seed.

    Args:
        start_codes: whether items get codes; a model to be loaded has its own.
    """
    init_seed(config["seed"], config["reproducibility"])
    content = None if vectors.content is None else torch.from_numpy(vectors.content.vectors)
    embedding = torch.from_numpy(vectors.embedding)
    return MODELS[config["model"]](
        config, train_dataset, embedding, content, start_codes=start_codes
    )


def trained_model(
    config: Config, directory: RunDirectory, identity: Identity, train_dataset
) -> ETEGRecLlama:
    """The best model of a finished run, on the CPU.

    Raises:
        UserError: what the run keeps of it is damaged, or is not of these keys and data.
    """
    vectors = read_vectors(directory, identity)
    model = make_model(config, train_dataset, vectors, start_codes=False)
    load_model(model, directory.best)
    return model
