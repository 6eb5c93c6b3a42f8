"""How a run begins: anew, or where it was stopped."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from recbole_etegrec.config import Config, is_ours
from recbole_etegrec.config.config import BY_CATALOGUE
from recbole_etegrec.errors import UserError
from recbole_etegrec.runs.beginning import begun_config
from recbole_etegrec.runs.checks import check_rules
from recbole_etegrec.runs.parts import config_of_run, earlier_version
from recbole_etegrec.storage.logs import start_logging
from recbole_etegrec.storage.run_directory import RunDirectory, new_default

# A run may go on with other values of these: they say where it is computed, and in which portions.
MAY_CHANGE = {
    "show_progress",
    "state",
    "save_steps",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "attn_implementation",
    "fused_kernels",
    "cuda_graphs",
    "record_searches",
    "memory_gib",
    "eval_batch_size",
    "use_gpu",
    "gpu_id",
    "log_wandb",
    "wandb_project",
    "embedding_cache",
    "binary_from_mib",
    "data_path",
    "base_model",
}


def start_config(
    model: str | None,
    dataset: str | None,
    config_file_list: list[str] | None,
    config_dict: dict[str, Any] | None,
) -> tuple[Config, bool]:
    """The configuration of a run, and whether it goes on with one that was stopped.

    Raises:
        UserError: keys contradict each other, or the run to go on with does not exist, has ended,
            or had another configuration; or a new one may not begin in its directory.
    """
    config, resume = _chosen_config(model, dataset, config_file_list, config_dict)
    check_rules(config)
    if config["run_dir"] and not resume and PartialState().is_main_process:
        refuse_other(config, RunDirectory(str(config["run_dir"])))
    return config, resume


def _chosen_config(
    model: str | None,
    dataset: str | None,
    config_file_list: list[str] | None,
    config_dict: dict[str, Any] | None,
) -> tuple[Config, bool]:
    values = dict(config_dict or {})
    resume = str(values.get("resume") or False)
    if resume.lower() not in ("false", "true"):
        return _config_of_run(resume, model, dataset, config_file_list, values), True
    config = begun_config(model, dataset, config_file_list, values)
    if config["resume"] not in (None, False, True):
        raise UserError(f"resume ({config['resume']}): in a file it can be True or False alone")
    if not config["resume"]:
        return config, False
    if not config["run_dir"]:
        raise UserError("resume (True) needs run_dir: give both, or --resume=RUN_DIR")
    run_dir = RunDirectory(str(config["run_dir"]))
    _check_model(config)
    begun = run_dir.config.exists()
    if begun:
        config.keep_settled(run_dir.read_config())
        _check_resumable(config, run_dir)
    return config, begun


def _config_of_run(
    path: str,
    model: str | None,
    dataset: str | None,
    config_file_list: list[str] | None,
    values: dict[str, Any],
) -> Config:
    if config_file_list:
        raise UserError("config_files: a run that goes on has its own config.yaml; leave it out")
    run_dir = RunDirectory(path)
    named = {key: name for key, name in (("model", model), ("dataset", dataset)) if name}
    config = config_of_run(run_dir, {**values, **named, "run_dir": path})
    config.keep_settled(run_dir.read_config())
    _check_resumable(config, run_dir)
    return config


def _check_resumable(config: Config, run_dir: RunDirectory) -> None:
    _check_model(config)
    recorded = run_dir.read_config()
    for key in sorted(recorded.keys() - config.known_keys):
        raise earlier_version(run_dir, key)
    run_dir.refuse_finished()
    for key, now, then in _changes(config, recorded):
        raise UserError(
            f"resume: {key} ({now}) was {then} when the run in {run_dir.path} began; "
            "leave it out, or start a new run"
        )


def _changes(config: Config, recorded: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """The keys that a run may not go on with: each with its value now, and that of before."""
    for key in sorted(config.inputs.keys() | recorded.keys(), key=str):
        now, then = (
            json.dumps(inputs.get(key), default=str) for inputs in (config.inputs, recorded)
        )
        left_open = key in BY_CATALOGUE and config.inputs.get(key) is None
        if now != then and key not in MAY_CHANGE and not left_open:
            yield key, now, then


def record_settled(config: Config, run_dir: RunDirectory) -> None:
    """Write into the config of a run what its catalogue has settled since it began."""
    recorded = run_dir.read_config()
    if settled := {key: config[key] for key in BY_CATALOGUE if recorded.get(key) is None}:
        run_dir.write_config({**recorded, **settled})


def _check_model(config: Config) -> None:
    if not is_ours(config):
        raise UserError(
            f"resume: RecBole's own models ({config['model']}) start anew; leave it out"
        )


@contextmanager
def held_run_directory(config: Config, resume: bool) -> Iterator[RunDirectory]:
    """Make or take up the directory of a run, hold it for all processes, and log to it.

    Raises:
        UserError: it cannot be written, another process holds it, or it holds anything but an
            unfinished run of this configuration.
    """
    state = PartialState()
    path = config["run_dir"] and str(config["run_dir"])
    if state.is_main_process:
        path = path or str(new_default(config["model"], config["dataset"]).path)
    run_dir = RunDirectory(broadcast_object_list([path])[0])
    if state.is_main_process and not resume:
        refuse_other(config, run_dir)
    with run_dir.held() if state.is_main_process else nullcontext():
        if state.is_main_process and resume:
            run_dir.refuse_finished()  # while this process began
        elif state.is_main_process:
            refuse_other(config, run_dir)
            run_dir.write_config(config.inputs)  # first: it is what marks the directory as a run's
            RunDirectory.create(run_dir.path)
        if state.is_main_process:
            run_dir.clear_leftovers()
        state.wait_for_everyone()
        start_logging(run_dir if state.is_main_process else None, config["state"])
        yield run_dir


def refuse_other(config: Config, run_dir: RunDirectory) -> None:
    """Refuse a directory that has files, unless they are of an unfinished run of this config.

    Raises:
        UserError: see above.
    """
    run_dir.refuse_taken()
    if not run_dir.config.exists():
        return
    for key, now, then in _changes(config, run_dir.read_config()):
        raise UserError(
            f"run_dir {run_dir.path}: holds files of another run, whose config.yaml has {key} "
            f"{then[:60]}, not {now[:60]}; choose another run_dir"
        )
