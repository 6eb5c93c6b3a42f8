"""What a comparison runs: every model with every seed, configured and checked before any starts."""

import hashlib
import json
import os
import shlex
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from recbole.utils import ModelType

from recbole_etegrec.config import (
    DEFAULT_DATASET,
    DEFAULT_MODEL,
    Config,
    find_config_file,
    properties_dir,
    read_config_files,
)
from recbole_etegrec.config.models import STANDS_ON
from recbole_etegrec.config.values import EACH, UnknownKeyError
from recbole_etegrec.data.dataset_files import repeated_user
from recbole_etegrec.data.input_files import require_files
from recbole_etegrec.data.rules import CLASSIFIERS
from recbole_etegrec.errors import UserError, nearest
from recbole_etegrec.report.compared import compared_runs
from recbole_etegrec.runs.checks import check_rules
from recbole_etegrec.runs.parts import config_of_run
from recbole_etegrec.runs.start import MAY_CHANGE
from recbole_etegrec.runs.trust import config_to_use
from recbole_etegrec.storage.run_directory import RunDirectory

# A comparison chooses these itself.
_NOT_TAKEN = {"seed": "give --seeds", "run_dir": "give --out", "resume": "it goes on by itself"}
# Whether histories are ranked, in the words that files and tables have for it.
HISTORIES = {False: "kept", True: "excluded"}


class PlannedRun(NamedTuple):
    """One model with one seed.

    Attributes:
        label: the model and its overlay, the row of the table that the run counts for.
        path: its directory; the name holds a hash of the configuration.
    """

    label: str
    config: Config
    path: Path


class Plan(NamedTuple):
    """All that a comparison is to do.

    Attributes:
        histories: how finished models are tested, values of `HISTORIES`.
        command: the command line that asked for this.
        notes: which keys were applied to some of the models only, lines of text.
        jobs: runs at a time.
    """

    runs: list[PlannedRun]
    out: Path
    histories: list[str]
    command: str
    notes: list[str]
    jobs: int


def make_plan(values: Mapping[str, str]) -> Plan:
    """The runs that a command line asks for; none has started yet.

    Raises:
        UserError: an unknown model, key, overlay or file, a configuration that contradicts
            itself, or no such dataset.
    """
    for key, instead in _NOT_TAKEN.items():
        if key in values:
            raise UserError(f"compare: --{key} is not taken: {instead}")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("compare starts its own processes: start it without a launcher")
    files = read_config_files(values.get("config_files", "").split())
    given = {**files, **{key: value for key, value in values.items() if key != "config_files"}}
    dataset = given.pop("dataset", DEFAULT_DATASET)
    seeds = _seeds(given.pop("seeds", str(given.get("seed", 2020))))
    jobs = str(given.pop("jobs", 1))
    if not jobs.isdecimal() or not int(jobs):
        raise UserError(f"jobs ({jobs}): must be a whole number above 0, of runs at a time")
    out = Path(given.pop("out", f"saved/compare-{dataset}")).absolute()
    finished = {}
    for path in _names(given.pop("runs", "")):
        finished |= dict.fromkeys(compared_runs([path]), Path(path).name)
    models, ablations = _names(given.pop("models", "")), _names(given.pop("ablations", ""))
    rows = _rows(models, ablations, finished)
    both = str(given.get("exclude_history")).lower() == "both"
    if both or given.get("exclude_history") is None:
        given.pop("exclude_history", None)
    if not rows and given:
        raise UserError(
            f"compare: --{next(iter(given))} is for models that it trains, and --runs have ended "
            "with values of their own: leave it out, or name --models"
        )

    probes = {model: _config(model, dataset, _device_keys(given)) for _, model, _ in rows}
    for model, probe in probes.items():
        if probe["MODEL_TYPE"] in CLASSIFIERS:
            raise UserError(
                f"{model}: it classifies labelled pairs, and cannot be compared with models that "
                "rank items: leave it out"
            )
    known = {model: probe.known_keys for model, probe in probes.items()}
    notes = _notes(given, known)
    # One rule for all: without a value general models would be ranked otherwise than sequential.
    recorded = [RunDirectory(path).read_config() for path in finished]
    recorded += [probe.inputs for probe in probes.values()]
    given.setdefault("exclude_history", any(keys.get("exclude_history") for keys in recorded))

    runs = [_finished(*one, dataset, given["exclude_history"]) for one in finished.items()]
    for label, model, changes in rows:
        applied = {key: value for key, value in given.items() if key in known[model]}
        for seed in seeds:
            config = _config(model, dataset, {**applied, **changes, "seed": seed})
            runs.append(PlannedRun(label, config, out / _name(label, config)))
    for run in [*runs[: len(finished)], *runs[len(finished) :: len(seeds)]]:
        require_files(run.config)
    _check_presplit(runs)
    command = [f"--{key}={value}" for key, value in values.items()]
    command = shlex.join(["recbole-etegrec", "compare", *command])
    return Plan(runs, out, _histories(runs, both), command, notes, int(jobs))


def _check_presplit(runs: list[PlannedRun]) -> None:
    """Refuse pre-split files that models of different kinds are tested on in different ways.

    Raises:
        UserError: a user has several rows to be ranked for, and a model ranks once for a user.
    """
    general = [run for run in runs if run.config["MODEL_TYPE"] != ModelType.SEQUENTIAL]
    if not general or len(general) == len(runs) or not runs[0].config["benchmark_filename"]:
        return
    if found := repeated_user(general[0].config):
        raise UserError(
            f"{general[0].label}: it ranks once for a user, and {found} has several lines: leave "
            "it out, or the models that rank for each line"
        )


def _finished(path: str, name: str, dataset: str, exclude: Any) -> PlannedRun:
    """A run that has ended elsewhere, which is tested in its own directory.

    Args:
        name: of its directory, or of the comparison that it belongs to.

    Raises:
        UserError: it has not ended, was not kept, or is of another dataset.
    """
    directory = RunDirectory(path)
    config = config_of_run(directory, config_to_use(directory, {"exclude_history": exclude}))
    if not directory.result.exists() or not directory.best.is_dir():
        raise UserError(f"runs: {path} has no result.json or no best/: name runs that have ended")
    if config["dataset"] != dataset:
        raise UserError(f"runs: {path} is of {config['dataset']}, not of {dataset}: leave it out")
    return PlannedRun(f"{config['model']} {name}", config, directory.path)


def _rows(
    models: list[str], ablations: list[str], finished: Collection[str]
) -> list[tuple[str, str, dict[str, Any]]]:
    """Label, model and changed keys of each row of the table that is to be trained."""
    rows = []
    for named in dict.fromkeys([*models, *(f"{DEFAULT_MODEL}+{name}" for name in ablations)]):
        model, plus, overlay = (part.strip() for part in named.partition("+"))
        changes = read_overlay(model, overlay) if plus else {}
        rows.append((f"{model} + {overlay}" if plus else model, model, changes))
    if not rows and not finished:
        raise UserError("compare: --models=A,B,... missing")
    return rows


def read_overlay(model: str, name: str) -> dict[str, Any]:
    """The keys that an overlay of a model changes.

    It is `properties/NAME/MODEL.yaml`, or one of `properties/ablation/`, which are for all models
    of the plugin.

    Raises:
        UserError: there is no such overlay.
    """
    known = overlays(model)
    if name not in known:
        exist = f"must be one of {', '.join(known)}" if known else "there is none for this model"
        raise UserError(f"{model}+{name}: no overlay '{name}'; {exist}{nearest(name, known)}")
    return read_config_files([find_config_file(known[name])])


def overlays(model: str) -> dict[str, str]:
    """The overlays of a model by name, each as `--config_files` takes it."""
    known = {}
    if model in STANDS_ON:
        known = {file.stem: f"ablation/{file.stem}" for file in _shipped("ablation/*")}
    of_it = [file.parent.name for file in _shipped(f"*/{model}") if file.parent.name != "model"]
    return known | {name: f"{name}/{model}" for name in of_it}


def _shipped(pattern: str) -> list[Path]:
    return sorted(properties_dir().glob(f"{pattern}.yaml"))


def _config(model: str, dataset: str, values: dict[str, Any]) -> Config:
    try:
        config = Config(model, dataset, config_dict=values)
        check_rules(config)
        return config
    except UserError as error:
        named = str(error) if model in str(error) else f"{model}: {error}"
        raise UserError(named) from error


def _device_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keep the keys of the device, which the first configuration settles for this process."""
    return {key: given[key] for key in ("use_gpu", "gpu_id") if key in given}


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(name) for name in _names(text.strip("[]"))]
    except ValueError:
        seeds = []
    if not seeds:
        raise UserError(f"seeds ({text}): must be whole numbers, such as 2020,2021")
    return seeds


def _notes(given: Iterable[str], known: Mapping[str, set[str]]) -> list[str]:
    """Say which keys apply to some of the models only, one line for each set of models.

    Raises:
        UserError: no model knows a key.
    """
    keys_of: dict[tuple[str, ...], list[str]] = {}
    for key in given:
        having = tuple(model for model, keys in known.items() if key in keys)
        if not having:
            raise UnknownKeyError(key, set().union(*known.values()), EACH)
        keys_of.setdefault(having, []).append(key)
    return [
        f"for {', '.join(having)} only: {', '.join(keys)}"
        for having, keys in keys_of.items()
        if len(having) < len(known)
    ]


def _name(label: str, config: Config) -> str:
    """``<model>-<seed>-<hash>``; keys that do not change a result are not in the hash."""
    unimportant = MAY_CHANGE - {"base_model"}
    inputs = {key: value for key, value in config.inputs.items() if key not in unimportant}
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode())
    return f"{label.replace(' ', '')}-{config['seed']}-{digest.hexdigest()[:8]}"


def _histories(runs: list[PlannedRun], both: bool) -> list[str]:
    """List how the models are tested; testing `both` ways needs rankings of all items.

    Raises:
        UserError: that is not settled for a model, or evaluation is sampled.
    """
    for run in runs:
        if run.config["exclude_history"] is None:
            raise UserError(
                f"{run.label}: exclude_history (None) must be True, False or both, one for all"
            )
        if both and run.config["eval_args"]["mode"]["test"] != "full":
            raise UserError("exclude_history (both) needs eval_args mode full: all items ranked")
    return list(HISTORIES.values()) if both else [HISTORIES[runs[0].config["exclude_history"]]]
