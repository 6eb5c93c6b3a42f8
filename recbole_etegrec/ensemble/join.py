"""Joins runs: checks that they fit, weighs them on validation, tests them, writes a run of them."""

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.utils import calculate_valid_score

from recbole_etegrec.config import Config
from recbole_etegrec.config.compat import versions
from recbole_etegrec.config.keys import KEYS
from recbole_etegrec.config.models import ENSEMBLE
from recbole_etegrec.config.recbole_keys import RECBOLE_KEYS
from recbole_etegrec.data.identity import Identity
from recbole_etegrec.data.input_files import require_files
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.ensemble.weights import find_weights
from recbole_etegrec.errors import UserError
from recbole_etegrec.evaluation.evaluate import collect_items, evaluate, metrics_of, score_in_turn
from recbole_etegrec.model.ensemble import EnsembleModel
from recbole_etegrec.quick_start import result_table
from recbole_etegrec.runs.checks import check_rules
from recbole_etegrec.runs.ensemble import (
    JoinedRun,
    build_ensemble,
    check_member,
    check_same_data,
    identity_of,
    read_members,
    write_members,
)
from recbole_etegrec.runs.identity import write_identity
from recbole_etegrec.runs.start import MAY_CHANGE
from recbole_etegrec.storage.lock import strangers
from recbole_etegrec.storage.logs import start_logging
from recbole_etegrec.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)

MEMBERS = "members"  # the folder of those that were trained to be joined
_CANDIDATES = 20  # of each member; few, for all members score the candidates of all
_NOT_SHARED = {"train_neg_sample_args", "checkpoint_dir"}


class Plan(NamedTuple):
    """What is going to be joined.

    Attributes:
        members: their weights are 1, unless `weighted`.
        config: of the ensemble.
        identity: of its data.
        weighted: whether the weights were given, and are not to be found.
    """

    members: list[JoinedRun]
    config: Config
    identity: Identity
    weighted: bool


def make_plan(
    paths: Sequence[str | Path],
    values: Mapping[str, Any],
    weights: Sequence[float] | None = None,
) -> Plan:
    """Look at the runs that are to be joined; none is loaded.

    Args:
        values: override keys of the ensemble's config, which are those of the first run.
        weights: of the runs; None: they are found on validation.

    Raises:
        UserError: they cannot be joined.
    """
    if len(paths) < 2:
        raise UserError("ensemble: expected the directories of two runs or more (see --help)")
    if weights is not None and len(weights) != len(paths):
        raise UserError(f"weights: {len(weights)} of them for {len(paths)} runs: give one a run")
    checked = [check_member(str(path)) for path in paths]
    first, known = checked[0]
    for path, (config, identity) in zip(paths[1:], checked[1:], strict=True):
        check_same_data(str(path), config, identity, first, known)
    shared = {
        key: value
        for key, value in first.inputs.items()
        if key in RECBOLE_KEYS and key not in KEYS and key not in _NOT_SHARED
    }
    longest = max(config["MAX_ITEM_LIST_LENGTH"] for config, _ in checked)
    shared |= {"MAX_ITEM_LIST_LENGTH": longest, **values}
    config = Config(ENSEMBLE, first["dataset"], config_dict=shared)
    if "candidates" not in shared:
        shared["candidates"] = max(_CANDIDATES, *config["topk"])
        config = Config(ENSEMBLE, first["dataset"], config_dict=shared)
    check_rules(config, embeds=False)
    if set(config["eval_args"]["mode"].values()) != {"full"}:
        raise UserError("eval_args: mode must be full to weigh the members of an ensemble")
    names = _names(paths)
    chosen = weights or [1.0] * len(paths)
    members = [JoinedRun(*one) for one in zip(names, _absolute(paths), chosen, strict=True)]
    return Plan(members, config, identity_of(first, known), weights is not None)


def _absolute(paths: Sequence[str | Path]) -> list[Path]:
    return [Path(path).absolute() for path in paths]


def _names(paths: Sequence[str | Path]) -> list[str]:
    """The names of the runs' directories, numbered where two have one name."""
    names: list[str] = []
    for path in _absolute(paths):
        number = sum(name.partition(" (")[0] == path.name for name in names)
        names.append(f"{path.name} ({number + 1})" if number else path.name)
    return names


def refuse_taken(out: Path) -> None:
    """Refuse a directory that has other files than those of an ensemble.

    Raises:
        UserError: see above.
    """
    directory = RunDirectory(out)
    if directory.config.is_file():
        if directory.read_config()["model"] != ENSEMBLE:
            raise UserError(f"out {out}: holds a run; choose another out")
    elif found := sorted({*strangers(out)} - {MEMBERS, directory.log.name}):
        raise UserError(
            f"out {out}: holds files that are no ensemble's ({', '.join(found[:5])}); choose "
            "another out"
        )


def join(plan: Plan, out: Path) -> str:
    """Join runs, unless that has been done; `out` is there, and held.

    Returns:
        The weights and metrics, as a text.

    Raises:
        UserError: another ensemble is there, or a member cannot be used.
    """
    directory = RunDirectory(out)
    if directory.result.exists():
        _check_same(directory, plan)
        return _text(directory)
    started = time.perf_counter()
    start_logging(directory, plan.config["state"])
    require_files(plan.config, embeds=False)
    model, _, loaders = build_ensemble(plan.config, plan.members, plan.identity)
    result = _measured(plan, model, *loaders)
    result["seconds"] = round(result["seconds"] + time.perf_counter() - started, 1)
    _write(directory, plan, result)
    return _text(directory)


def _measured(
    plan: Plan,
    model: EnsembleModel,
    train_data: SequenceLoader,
    valid_data: FullSortEvalDataLoader,
    test_data: FullSortEvalDataLoader,
) -> dict[str, Any]:
    """Weigh the members, which the model takes up, and test it; returns the ``result.json``."""
    config, trained_on = plan.config, train_data._dataset
    found = list(score_in_turn(model.ranker, valid_data, config))
    # Of members that score all items, their best ones are enough to weigh them by.
    if model.ranker.exact:
        found = [one.shortlist(config["candidates"]) for one in found]
    bigger, metric = config["valid_metric_bigger"], config["valid_metric"].lower()

    def score(weights: Sequence[float]) -> float:
        best = (one.best(weights, max(config["topk"])).items for one in found)
        result = metrics_of(config, collect_items(best, valid_data, trained_on, config))
        value = calculate_valid_score(result, metric)
        return value if bigger else -value

    count = len(plan.members)
    each = [score([float(n == number) for n in range(count)]) for number in range(count)]
    weights = [member.weight for member in plan.members]
    if not plan.weighted:
        weights = find_weights(count, score)
    names = [member.name for member in plan.members]
    logger.info("weights: %s", dict(zip(names, weights, strict=True)))
    model.weigh(weights)
    valid, test = (evaluate(model, part, trained_on, config) for part in (valid_data, test_data))
    results = [RunDirectory(member.path).read_result() for member in plan.members]
    return {
        **{key: config[key] for key in ("model", "dataset", "seed")},
        "best_valid_score": calculate_valid_score(valid, metric),
        "best_valid_result": valid,
        "test_result": test,
        "epochs": sum(result["epochs"] for result in results),
        "seconds": sum(result["seconds"] for result in results),
        "members": [
            {"name": name, "weight": weight, "valid": value if bigger else -value}
            for name, weight, value in zip(names, weights, each, strict=True)
        ],
        "versions": versions(),
    }


def _write(directory: RunDirectory, plan: Plan, result: dict[str, Any]) -> None:
    """Write the run of an ensemble; ``result.json`` comes last, and says that it is whole.

    Raises:
        UserError: it cannot be written.
    """
    weights = [member["weight"] for member in result["members"]]
    members = [one._replace(weight=w) for one, w in zip(plan.members, weights, strict=True)]
    try:
        directory.write_config(plan.config.inputs)
        write_identity(directory, plan.identity)
        write_members(directory, members)
        directory.write_json(directory.result.name, result)
    except OSError as error:
        raise UserError(f"out {directory.path}: cannot be written ({error})") from error


def _check_same(directory: RunDirectory, plan: Plan) -> None:
    """Refuse to join other runs, or to join them otherwise, where an ensemble is finished.

    Raises:
        UserError: see above.
    """
    there = read_members(directory)
    same = [one.path for one in there] == [one.path for one in plan.members]
    if plan.weighted:
        same = same and [one.weight for one in there] == [one.weight for one in plan.members]
    recorded = directory.read_config()
    chosen = {key: value for key, value in plan.config.inputs.items() if key not in MAY_CHANGE}
    if not same or any(recorded.get(key) != value for key, value in chosen.items()):
        raise UserError(
            f"out {directory.path}: holds an ensemble of other runs, weights or keys; choose "
            "another out"
        )


def _text(directory: RunDirectory) -> str:
    """What a finished ensemble has come to."""
    result, metric = directory.read_json(directory.result.name), directory.read_config()
    metric = f"valid {metric['valid_metric']}"
    names = [member["name"] for member in result["members"]]
    width = max(map(len, [*names, "ensemble"]))
    lines = [f"{'member':{width}}  weight  {metric}"]
    for member in result["members"]:
        lines.append(f"{member['name']:{width}}  {member['weight']:6g}  {member['valid']:.4f}")
    lines.append(f"{'ensemble':{width}}          {result['best_valid_score']:.4f}")
    lines += ["", "test", result_table(result["test_result"]), "", f"written to {directory.path}"]
    return "\n".join(lines) + "\n"
