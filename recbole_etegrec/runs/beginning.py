"""A run that begins with the model of a finished one, in place of the phases before (`preference`).

It is of that run's configuration but for the keys that are given, and of its data and vectors.
"""

from dataclasses import replace
from typing import Any

from recbole_etegrec.config import Config, is_ours
from recbole_etegrec.data import ItemVectors, WholeSequenceDataset
from recbole_etegrec.errors import UserError
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.runs.identity import difference, read_identity, read_vectors
from recbole_etegrec.runs.parts import config_of_run
from recbole_etegrec.runs.trust import config_to_use
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer.checkpoint import load_model

_OWN = ("model", "dataset", "schedule")  # the run's own, whatever is given


def begun_config(
    model: str | None,
    dataset: str | None,
    config_file_list: list[str] | None,
    config_dict: dict[str, Any] | None,
) -> Config:
    """The configuration that arguments make; that of a run with keys changed, if they name one.

    Raises:
        UserError: what they name by ``preference_from`` is no finished run of the plugin, or of
            another model or dataset.
    """
    config = Config(model, dataset, config_file_list, config_dict)
    if not config["preference_from"]:
        return config
    directory = RunDirectory(config["preference_from"])
    recorded = directory.read_config()
    if not is_ours(recorded) or not directory.result.exists() or not directory.best.is_dir():
        raise UserError(
            f"preference_from ({directory.path}): must be a finished run of one of the plugin's "
            "models, with its best/"
        )
    named = {key: name for key, name in (("model", model), ("dataset", dataset)) if name}
    given = {**config.external_config_dict, **named}
    for key in ("model", "dataset"):
        if key in given and given[key] != recorded[key]:
            raise UserError(
                f"{key} ({given[key]}): the run in {directory.path} has {recorded[key]}: leave it "
                "out, or name another run by preference_from"
            )
    schedule = given.get("schedule", ["preference"])
    if schedule[-1] != "preference":
        raise UserError(
            f"preference_from ({directory.path}) is for the phase preference, and schedule "
            f"({schedule}) ends with another: leave one of them out"
        )
    kept = {key: value for key, value in given.items() if key not in _OWN}
    return config_of_run(directory, config_to_use(directory, {**kept, "schedule": ["preference"]}))


def vectors_from(config: Config, dataset: WholeSequenceDataset) -> ItemVectors | None:
    """The vectors of the run that a config begins with; None where it begins with none.

    Raises:
        UserError: the data are not those of that run.
    """
    if not config["preference_from"]:
        return None
    directory = RunDirectory(config["preference_from"])
    identity = read_identity(directory)
    if replace(identity, vectors=None) != dataset.identity:
        raise UserError(
            f"preference_from: {dataset.dataset_name} has changed since the run in "
            f"{directory.path} ({difference(identity, dataset.identity)}): bring back the data"
        )
    return read_vectors(directory, identity)


def load_from(config: Config, model: ETEGRecLlama) -> None:
    """Give a model the weights and codes of the run that its config begins with, if any.

    Raises:
        UserError: they are damaged, or of other keys.
    """
    if config["preference_from"]:
        load_model(model, RunDirectory(config["preference_from"]).best)
