"""How a run begins: anew, or where it was stopped."""

from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from recbole_etegrec.config import Config
from recbole_etegrec.errors import UserError
from recbole_etegrec.model import MODELS
from recbole_etegrec.run_directory import RunDirectory, default_path, start_logging

# A run may go on with other values of these: they change how it runs, not what it computes.
MAY_CHANGE = {
    "show_progress",
    "state",
    "save_steps",
    "max_bad_steps",
    "gradient_accumulation_steps",
}
MAY_CHANGE |= {"use_gpu", "gpu_id", "log_wandb", "wandb_project", "embedding_cache"}


def start_config(
    model: str | None,
    dataset: str | None,
    config_file_list: list[str] | None,
    config_dict: dict[str, Any] | None,
) -> tuple[Config, bool]:
    """The configuration of a run, and whether it goes on with one that was stopped.

    Raises:
        UserError: the run to go on with does not exist, has ended, or had another configuration.
    """
    values = dict(config_dict or {})
    resume = values.get("resume") or False
    if str(resume).lower() in ("false", "true"):
        config = Config(model, dataset, config_file_list, values)
        resume = str(resume).lower() == "true"
        if resume and not config["run_dir"]:
            raise UserError("resume (True) needs run_dir: give both, or --resume=RUN_DIR")
        path = config["run_dir"]
        resume = resume and RunDirectory(path).config.exists()
        recorded = RunDirectory(path).read_yaml("config.yaml") if resume else None
    else:
        path = resume
        recorded = RunDirectory(path).read_yaml("config.yaml")
        given = {k: v for k, v in (("model", model), ("dataset", dataset)) if v}
        changes = {key: values[key] for key in values if key != "resume"}
        merged = {**recorded, **changes, **given, "run_dir": str(path)}
        config = Config(None, None, config_file_list, merged)
    if recorded is not None:
        _check_resumable(config, recorded, RunDirectory(path))
    return config, recorded is not None


def _check_resumable(config: Config, recorded: dict[str, Any], run_dir: RunDirectory) -> None:
    if config["model"] not in MODELS:
        raise UserError(
            f"resume: RecBole's own models ({config['model']}) start anew; leave it out"
        )
    if run_dir.result.exists():
        raise UserError(f"resume: the run in {run_dir.path} has ended; see its result.json")
    for key in sorted(config.inputs.keys() | recorded.keys()):
        now, then = config.inputs.get(key), recorded.get(key)
        if now != then and key not in MAY_CHANGE:
            raise UserError(
                f"resume: {key} ({now}) was {then} when the run in {run_dir.path} began; "
                "leave it out, or start a new run"
            )


def start_run_directory(config: Config, resume: bool) -> RunDirectory:
    """Make or take up the directory of a run, one for all processes, and log to it.

    Raises:
        UserError: it cannot be written, or holds a finished run.
    """
    state = PartialState()
    path = config["run_dir"] or default_path(config["model"], config["dataset"])
    run_dir = RunDirectory(broadcast_object_list([str(path)])[0])
    if state.is_main_process and not resume:
        RunDirectory.create(run_dir.path)
        run_dir.write_yaml("config.yaml", config.inputs)
    state.wait_for_everyone()
    start_logging(run_dir if state.is_main_process else None, config["state"])
    return run_dir
