"""Loads a finished run: its model and the data that it was trained on."""

import logging
from typing import Any

import numpy as np
import torch
from recbole.utils import init_seed

from recbole_etegrec.config import Config, UnknownKeyError, is_ours
from recbole_etegrec.config.models import STANDS_ON
from recbole_etegrec.data import create_dataset, data_preparation
from recbole_etegrec.data.dataset_files import check_dataset_counts
from recbole_etegrec.data.identity import known_ids
from recbole_etegrec.data.input_files import require_files
from recbole_etegrec.errors import UserError
from recbole_etegrec.model import MODELS, ETEGRecLlama
from recbole_etegrec.model.build import settle_codes
from recbole_etegrec.runs.added_items import read_added_items, take_added_items
from recbole_etegrec.runs.baseline import load_baseline
from recbole_etegrec.runs.checks import check_rules
from recbole_etegrec.runs.identity import items_gone, read_identity, read_vectors
from recbole_etegrec.runs.trust import config_to_use, offline
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer.checkpoint import load_model

logger = logging.getLogger(__name__)


def load_run(run_dir: str, config_dict: dict[str, Any] | None = None) -> tuple:
    """Load a finished run's model and its data; `config_dict` overrides keys of its config.

    The run may be somebody else's: nothing is executed, fetched or written for what it says (see
    `trust.py`).

    Items that were added to the run are part of the model and of the dataset, and are ranked with
    the others. Where data have changed since the run was trained, items keep their ids, those that
    are gone are not ranked, and what is new is left out; ``dataset.changed`` says so.

    Returns:
        ``(config, model, dataset, train_data, valid_data, test_data)``.

    Raises:
        UserError: `run_dir` is not a run's or is damaged, or the dataset is gone or another.
    """
    directory = RunDirectory(run_dir)
    config = config_of_run(directory, config_to_use(directory, config_dict))
    check_rules(config, embeds=False)
    fetch = bool(config_dict and config_dict.get("download"))
    require_files(config, fetch=fetch, embeds=False)
    identity = read_identity(directory)
    if directory.result.exists():
        directory.drop_checkpoints()  # of a run that was killed when it had ended
    if not is_ours(config):
        return load_baseline(config, directory, identity)
    added = read_added_items(directory)
    further = [] if added is None else added.tokens
    with known_ids({field: names + further for field, names in identity.tokens.items()}) as changes:
        dataset, loaders = load_data(config)
    gone = items_gone(identity, changes, dataset)
    vectors = read_vectors(directory, identity).embedding
    with offline(when="base_model" not in (config_dict or {})):
        model = make_model(config, loaders[0]._dataset, vectors, start_codes=False)
    load_model(model, directory.best)
    if added is not None:
        take_added_items(directory, added, model, dataset)
    model.codes.leave_out(torch.from_numpy(gone))
    return config, model.to(config["device"]).eval(), dataset, *loaders


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


def read_own_config(directory: RunDirectory) -> dict[str, Any]:
    """Read the config of a run that must be of one of this plugin's models.

    Raises:
        UserError: `directory` is not a run's, or is of a model of RecBole.
    """
    values = directory.read_config()
    if not is_ours(values):
        raise UserError(
            f"run_dir {directory.path}: a run of {values.get('model')}; name a run of "
            f"{', '.join(STANDS_ON)}"
        )
    return values


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
    if is_ours(config):
        settle_codes(config, dataset.item_num)
    return dataset, data_preparation(config, dataset)


def make_model(
    config: Config, train_dataset, embedding: np.ndarray, *, start_codes: bool = True
) -> ETEGRecLlama:
    """Make a new model of a config; its random weights come from the config's seed.

    Args:
        start_codes: whether items get codes; a model to be loaded has its own.
    """
    init_seed(config["seed"], config["reproducibility"])
    vectors = torch.from_numpy(embedding)
    return MODELS[config["model"]](config, train_dataset, vectors, start_codes=start_codes)
