"""A run that is made of other runs: which they are, with which weights, and how it is loaded.

The directory of an ensemble is one of a run. In the place of a model, its ``best/`` has
``ensemble.json``: the directories of its members, their weights, and what their own ``best/`` held
when they were joined.
"""

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from recbole.utils import ModelType

from recbole_etegrec.config import Config, is_ours
from recbole_etegrec.config.models import ENSEMBLE
from recbole_etegrec.data.identity import Identity, known_ids
from recbole_etegrec.decoding import BatchFields, Member
from recbole_etegrec.errors import UserError
from recbole_etegrec.model.ensemble import EnsembleModel
from recbole_etegrec.runs.baseline import BaselineRanking, baseline_data, baseline_model
from recbole_etegrec.runs.checks import check_rules
from recbole_etegrec.runs.identity import items_gone, read_identity
from recbole_etegrec.runs.parts import config_of_run, load_data, trained_model
from recbole_etegrec.runs.trust import config_to_use, offline
from recbole_etegrec.storage.atomic import atomic_directory
from recbole_etegrec.storage.digests import damaged_file, file_digest, write_checksums
from recbole_etegrec.storage.records import NUMBER, read_json
from recbole_etegrec.storage.run_directory import RunDirectory

RECORD = "ensemble.json"
_SHAPE = {"members": [{"name": str, "run": str, "weight": NUMBER, "best": str}]}
# What the rows that are ranked follow from, beside the interactions.
_SPLIT = ("split", "order", "group_by")


class JoinedRun(NamedTuple):
    """A member as it is recorded.

    Attributes:
        name: what tables and explanations call it, another one for each member.
        path: its directory.
        weight: of its scores; 0: it is left out of the ranking.
    """

    name: str
    path: Path
    weight: float


def write_members(directory: RunDirectory, members: list[JoinedRun]) -> None:
    """Record the members of an ensemble in its ``best/``, by paths from its directory.

    Raises:
        OSError: it cannot be written.
    """
    record = [
        {
            "name": member.name,
            "run": os.path.relpath(member.path, directory.path),
            "weight": member.weight,
            "best": _digest_of_best(RunDirectory(member.path)),
        }
        for member in members
    ]
    with atomic_directory(directory.best) as fresh:
        (fresh / RECORD).write_text(json.dumps({"members": record}, indent=2) + "\n", "utf-8")
        write_checksums(fresh)


def read_members(directory: RunDirectory) -> list[JoinedRun]:
    """The members of an ensemble.

    Raises:
        UserError: the record is damaged, or a member is gone or has another model than it had.
    """
    if damaged := damaged_file(directory.best, RECORD):
        raise UserError(
            f"run_dir {directory.path}: best/ is damaged ({damaged} is missing or not as it was "
            "written): join its members again"
        )
    members = []
    for record in read_json(directory.best / RECORD, _SHAPE)["members"]:
        path = Path(os.path.normpath(directory.path / record["run"]))
        if _digest_of_best(RunDirectory(path)) != record["best"]:
            raise UserError(
                f"run_dir {directory.path}: its member {path} is gone, or has another model than "
                "when they were joined: bring it back, or join them again"
            )
        members.append(JoinedRun(record["name"], path, float(record["weight"])))
    return members


def _digest_of_best(member: RunDirectory) -> str | None:
    checksums = member.best / "checksums.json"
    return file_digest(checksums) if checksums.is_file() else None


def load_ensemble(config: Config, directory: RunDirectory, identity: Identity) -> tuple:
    """An ensemble and its data, as `load_run` returns them; members are loaded when needed.

    Raises:
        UserError: it or a member is damaged, or they are not of the same data any more.
    """
    model, dataset, loaders = build_ensemble(config, read_members(directory), identity)
    return config, model, dataset, *loaders


def build_ensemble(config: Config, members: list[JoinedRun], identity: Identity) -> tuple:
    """An ensemble, its dataset and its loaders.

    Raises:
        UserError: a member is damaged, or they are not of the same data any more.
    """
    with known_ids(identity.tokens) as changes:
        dataset, loaders = load_data(config)
    gone = torch.from_numpy(items_gone(identity, changes, dataset))
    train = loaders[0]._dataset
    model = EnsembleModel(
        [open_member(member, config, train, gone) for member in members],
        BatchFields(train.iid_field, train.item_id_list_field, train.item_list_length_field),
        n_items=dataset.item_num,
        max_history=config["MAX_ITEM_LIST_LENGTH"],
        exclude_history=bool(config["exclude_history"]),
        candidates=config["candidates"],
        left_out=gone,
        device=config["device"],
    )
    model.weigh([member.weight for member in members])
    return model, dataset, loaders


def open_member(member: JoinedRun, config: Config, train_dataset, gone: torch.Tensor) -> Member:
    """A member whose model is loaded when it is needed.

    Args:
        config: of the ensemble; it says where data are and where to compute.
        train_dataset: of the ensemble, for the number of its items.
        gone: items that are not ranked.

    Raises:
        UserError: the run is not of the data of the ensemble, or cannot be a member.
    """
    directory = RunDirectory(member.path)
    values = {"data_path": config.inputs["data_path"], "use_gpu": config["use_gpu"]}
    own = config_of_run(directory, config_to_use(directory, values))
    identity = read_identity(directory)
    if is_ours(own):
        check_rules(own, embeds=False)
        load = partial(_own_model, own, directory, identity, train_dataset, gone)
    else:
        load = _Baseline(member.name, own, directory, identity)
    return Member(member.name, member.weight, load)


def _own_model(config, directory, identity, train_dataset, gone):
    with offline():
        model = trained_model(config, directory, identity, train_dataset)
    model.codes.leave_out(gone)
    return model.to(config["device"]).eval()


class _Baseline:
    """Loads a model of RecBole; its data are read once, for they take longer than its weights."""

    def __init__(self, name: str, config: Config, directory: RunDirectory, identity: Identity):
        self.name, self.config, self.directory, self.identity = name, config, directory, identity
        self.data = None

    def __call__(self) -> BaselineRanking:
        if self.data is None:
            self.data = baseline_data(self.config, self.directory, self.identity)
        _, loaders, gone = self.data
        model = baseline_model(self.config, self.directory, loaders[0], gone)
        return BaselineRanking(model, self.config, self.name)


def check_member(path: str) -> tuple[Config, Identity]:
    """Look whether a run can be a member of an ensemble; returns its config and its data.

    Raises:
        UserError: it has not ended, keeps no model, or ranks by other things than histories.
    """
    directory = RunDirectory(path)
    config = config_of_run(directory, config_to_use(directory, {}))
    if not directory.result.exists() or not directory.best.is_dir():
        raise UserError(
            f"run_dir {path}: has no result.json or no best/: only a run that has ended, and was "
            "kept, can be a member of an ensemble"
        )
    if config["model"] == ENSEMBLE:
        raise UserError(f"run_dir {path}: an ensemble itself; name its members instead")
    if directory.added_items.exists():
        raise UserError(
            f"run_dir {path}: items were added to it, which other members do not know; name a run "
            "without added_items.safetensors"
        )
    if config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
        raise UserError(
            f"run_dir {path}: {config['model']} ranks for users that it knows, not after "
            "histories, and cannot be a member of an ensemble; leave it out"
        )
    return config, read_identity(directory)


def check_same_data(
    path: str,
    config: Config,
    identity: Identity,
    first: Config,
    known: Identity,
    called: str = "the first member",
) -> None:
    """Refuse a run whose items, interactions or split are not those of a first.

    Args:
        called: what the message calls the first.

    Raises:
        UserError: see above; it says what differs.
    """
    item = first["ITEM_ID_FIELD"]
    tokens, expected = identity.tokens.get(config["ITEM_ID_FIELD"]), known.tokens[item]
    differs = [key for key in _SPLIT if config["eval_args"].get(key) != first["eval_args"].get(key)]
    if tokens != expected:
        same = sorted(tokens or ()) == sorted(expected)
        found = f"the items of {config['dataset']} in another order" if same else "other items"
    elif identity.interactions != known.interactions:
        found = "other interactions"
    elif differs:
        found = f"another split (eval_args: {', '.join(differs)})"
    elif config["benchmark_filename"] != first["benchmark_filename"]:
        found = "another split (benchmark_filename)"
    else:
        return
    raise UserError(
        f"run_dir {path}: has {found} than {called}: both must be of the same data and split"
    )


def identity_of(first: Config, identity: Identity) -> Identity:
    """The identity of an ensemble whose first member has this one: its items alone."""
    item = first["ITEM_ID_FIELD"]
    return replace(identity, tokens={item: identity.tokens[item]}, vectors=None)
