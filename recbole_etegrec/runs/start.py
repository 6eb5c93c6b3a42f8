"""How a run begins: anew, or where it was stopped."""

import json
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from recbole_etegrec.config import Config, is_ours
from recbole_etegrec.errors import UserError
from recbole_etegrec.runs.checks import check_rules
from recbole_etegrec.runs.load import config_of_run, earlier_version
from recbole_etegrec.storage.logs import start_logging
from recbole_etegrec.storage.run_directory import RunDirectory, default_path

# A run may go on with other values of these: they say where it is computed, and in which portions.
MAY_CHANGE = {
    "show_progress",
    "state",
    "save_steps",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "attn_implementation",
    "memory_gib",
    "eval_batch_size",
    "use_gpu",
    "gpu_id",
    "log_wandb",
    "wandb_project",
    "embedding_cache",
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
            or had another configuration.
    """
    config, resume = _chosen_config(model, dataset, config_file_list, config_dict)
    check_rules(config)
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
    config = Config(model, dataset, config_file_list, values)
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
    _check_resumable(config, run_dir)
    return config


def _check_resumable(config: Config, run_dir: RunDirectory) -> None:
    _check_model(config)
    recorded = run_dir.read_config()
    for key in sorted(recorded.keys() - config.known_keys):
        raise earlier_version(run_dir, key)
    if run_dir.result.exists():
        raise UserError(f"resume: the run in {run_dir.path} has ended; see its result.json")
    for key in sorted(config.inputs.keys() | recorded.keys()):
        now, then = (json.dumps(inputs.get(key)) for inputs in (config.inputs, recorded))
        if now != then and key not in MAY_CHANGE:
            raise UserError(
                f"resume: {key} ({now}) was {then} when the run in {run_dir.path} began; "
                "leave it out, or start a new run"
            )


def _check_model(config: Config) -> None:
    if not is_ours(config):
        raise UserError(
            f"resume: RecBole's own models ({config['model']}) start anew; leave it out"
        )


def start_run_directory(config: Config, resume: bool) -> RunDirectory:
    """Make or take up the directory of a run, one for all processes, and log to it.

    Raises:
        UserError: it cannot be written, or holds a finished run.
    """
    state = PartialState()
    path = config["run_dir"] or default_path(config["model"], config["dataset"])
    run_dir = RunDirectory(broadcast_object_list([str(path)])[0])
    if state.is_main_process:
        if not resume:
            RunDirectory.create(run_dir.path)
            run_dir.write_config(config.inputs)
        run_dir.clear_leftovers()
    state.wait_for_everyone()
    start_logging(run_dir if state.is_main_process else None, config["state"])
    return run_dir
