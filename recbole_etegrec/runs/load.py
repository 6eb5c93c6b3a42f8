"""Loads a finished run: its model and the data that it was trained on."""

from typing import Any

import torch

from recbole_etegrec.config import is_ours
from recbole_etegrec.config.models import ENSEMBLE, check_own
from recbole_etegrec.data.identity import known_ids
from recbole_etegrec.data.input_files import require_files
from recbole_etegrec.errors import UserError
from recbole_etegrec.runs.added_items import (
    AddedItems,
    ranked_by,
    read_added_items,
    take_added_items,
)
from recbole_etegrec.runs.baseline import load_baseline
from recbole_etegrec.runs.checks import check_rules
from recbole_etegrec.runs.ensemble import load_ensemble
from recbole_etegrec.runs.identity import items_gone, read_identity
from recbole_etegrec.runs.parts import config_of_run, load_data, trained_model
from recbole_etegrec.runs.trust import config_to_use, offline
from recbole_etegrec.storage.run_directory import RunDirectory


def load_run(
    run_dir: str, config_dict: dict[str, Any] | None = None, added: AddedItems | None = None
) -> tuple:
    """Load a finished run's model and its data; `config_dict` overrides keys of its config.

    The run may be somebody else's: nothing is executed, fetched or written for what it says (see
    `trust.py`).

    Items that were added to the run are part of the model and of the dataset, and are ranked with
    the others. Where data have changed since the run was trained, items keep their ids, those that
    are gone are not ranked, and what is new is left out; ``dataset.changed`` says so.

    Of an ensemble the model is an `EnsembleModel`, which loads its members when it ranks.

    Args:
        added: items to add in place of those that were.

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
    if config["model"] == ENSEMBLE:
        return load_ensemble(config, directory, identity)
    added = read_added_items(directory) if added is None else added
    further = [] if added is None else added.tokens
    with known_ids({field: names + further for field, names in identity.tokens.items()}) as changes:
        dataset, loaders = load_data(config)
    gone = items_gone(identity, changes, dataset)
    with offline(when="base_model" not in (config_dict or {})):
        model = trained_model(config, directory, identity, loaders[0]._dataset)
    if added is not None:
        take_added_items(directory, added, model, dataset, ranked_by(config))
    model.codes.leave_out(torch.from_numpy(gone))
    return config, model.to(config["device"]).eval(), dataset, *loaders


def read_own_config(directory: RunDirectory, *, joined: bool = False) -> dict[str, Any]:
    """Read the config of a run that must be of one of this plugin's models.

    Args:
        joined: whether it may be of an ensemble.

    Raises:
        UserError: `directory` is not a run's, or is of a model of RecBole.
    """
    values = directory.read_config()
    check_own(values, directory.path)
    if values["model"] == ENSEMBLE and not joined:
        raise UserError(
            f"run_dir {directory.path}: an ensemble, which has no codes of its own: name one of "
            "its members"
        )
    return values
