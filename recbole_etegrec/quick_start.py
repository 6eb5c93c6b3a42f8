"""The whole story of a run, in the order the data flows."""

import logging
import os
import shlex
import time
from typing import Any

from accelerate import PartialState
from tqdm.contrib.logging import logging_redirect_tqdm

from recbole_etegrec.config import Config, is_ours
from recbole_etegrec.config.compat import versions
from recbole_etegrec.config.models import TRAINED
from recbole_etegrec.data import (
    check_item_embedding,
    embedding_width,
    item_vectors,
    make_content,
    width_of,
)
from recbole_etegrec.data.dislikes import find_dislikes
from recbole_etegrec.data.input_files import require_files
from recbole_etegrec.errors import Interrupted, UserError
from recbole_etegrec.evaluation.evaluate import told_sample
from recbole_etegrec.model.build import check_base_model
from recbole_etegrec.preflight.gradient_check import GradientCheck, check_gradients
from recbole_etegrec.preflight.memory_plan import MemoryPlan
from recbole_etegrec.runs.baseline import run_baseline
from recbole_etegrec.runs.beginning import begun_config, load_from, vectors_from
from recbole_etegrec.runs.checks import advice, check_rules
from recbole_etegrec.runs.identity import vectors_to_train_with, write_identity
from recbole_etegrec.runs.parts import load_data, make_model
from recbole_etegrec.runs.start import held_run_directory, record_settled, start_config
from recbole_etegrec.runs.tasks import give_tasks
from recbole_etegrec.runs.teaching import check_teacher, give_teacher
from recbole_etegrec.storage.logs import start_logging
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer import ETEGRecTrainer

logger = logging.getLogger(__name__)


def run(
    model: str | None = None,
    dataset: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    saved: bool = True,
) -> dict[str, Any]:
    """Train, validate and test one model, of the plugin or of RecBole, on one dataset.

    Returns:
        RecBole's ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result`` and
        ``test_result``, and the ``run_dir`` that holds the rest.

    The key ``resume`` goes on with a run: its directory, or True for the one in ``run_dir``.

    Raises:
        UserError: anything the user can mend, before training starts.
        TrainingError: training cannot go on.
        Interrupted: SIGINT or SIGTERM came.
    """
    started = time.perf_counter()
    config, resume = start_config(model, dataset, config_file_list, config_dict)
    require_files(config)
    check_base_model(config)
    check_item_embedding(config)
    check_teacher(config)
    with held_run_directory(config, resume) as run_dir:
        logger.info("%s on %s: %s", config["model"], config["dataset"], run_dir.path)
        outcome = _outcome(config, run_dir, saved, resume)
        result = {key: config[key] for key in ("model", "dataset", "seed")}
        result |= {**outcome, "seconds": round(time.perf_counter() - started, 1)}
        if PartialState().is_main_process:
            run_dir.write_json("result.json", {**result, "versions": versions()})
            run_dir.drop_checkpoints()
        logger.info("test result\n%s", result_table(outcome["test_result"]))
        if saved:
            logger.info("%s", _what_next(config, run_dir, outcome))
    return {
        "best_valid_score": outcome["best_valid_score"],
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": outcome["best_valid_result"],
        "test_result": outcome["test_result"],
        "run_dir": str(run_dir.path),
    }


def _outcome(config: Config, run_dir: RunDirectory, saved: bool, resume: bool) -> dict[str, Any]:
    with logging_redirect_tqdm():  # log lines pass above a progress bar, not through it
        if not is_ours(config):
            return _plain(run_baseline(config, run_dir, saved))
        try:
            return _plain(run_etegrec(config, run_dir, saved, resume))
        except Interrupted as error:
            logger.warning("%s; go on with --resume=%s", error, run_dir.path)
            error.told = True
            raise


def run_etegrec(
    config: Config, run_dir: RunDirectory, saved: bool = True, resume: bool = False
) -> dict[str, Any]:
    """Train and test one of the plugin's models; returns what `run_baseline` does."""
    for line in advice(config):
        logger.warning(line)
    with PartialState().main_process_first():  # which leaves the embeddings in the cache
        dataset, (train_data, valid_data, test_data) = load_data(config)
        give_teacher(config, train_data, dataset.identity)
        train_data.dislikes = find_dislikes(config, train_data._dataset)
        give_tasks(config, train_data)
        vectors = vectors_from(config, dataset) or vectors_to_train_with(
            config, run_dir, dataset, train_data._dataset, resume
        )
        memory = MemoryPlan(
            config, train_data, vectors.embedding.shape[1], width_of(vectors.content)
        )
        logger.info("memory plan\n%s", memory)
        memory.check()  # before any weights are loaded
        begun = bool(config["preference_from"])
        model = make_model(config, train_data._dataset, vectors, start_codes=not begun)
        load_from(config, model)
    if PartialState().is_main_process:
        record_settled(config, run_dir)
    if saved and PartialState().is_main_process:
        write_identity(run_dir, dataset.identity, vectors)
    trainer = ETEGRecTrainer(config, model, run_dir)
    progress = config["show_progress"]
    best_valid_score, best_valid_result = trainer.fit(
        train_data, valid_data, saved=saved, show_progress=progress, resume=resume
    )
    test_data = told_sample(config, test_data, config["test_users"], "test")
    test_result = trainer.evaluate(test_data, load_best_model=saved, show_progress=progress)
    trainer.finish(test_result)
    return {
        "best_valid_score": best_valid_score,
        "best_valid_result": best_valid_result,
        "test_result": test_result,
        "epochs": trainer.progress.epochs_done,
    }


def _what_next(config: Config, run_dir: RunDirectory, outcome: dict[str, Any]) -> str:
    """The last lines of a run: where it is, what was best, and what one would type next."""
    path = shlex.quote(os.path.relpath(run_dir.path))
    best = run_dir.read_json("best/model.json").get("epoch")
    found = f"{outcome['epochs']} epochs"
    if best is not None and outcome["epochs"]:
        found += f", the best was {best + 1}"
    if outcome["best_valid_score"] is not None:
        found += f", {config['valid_metric']} {outcome['best_valid_score']:.4f} on validation"
    return (
        f"{found}; the run is in {path}; next:\n"
        f"  recbole-etegrec recommend {path} --all --out=top.csv\n"
        f"  recbole-etegrec report {path}"
    )


def result_table(result: dict[str, float]) -> str:
    """`result` as text, a row for each metric and a column for each K."""
    rows: dict[str, dict[str, float]] = {}
    for key, value in result.items():
        metric, _, cutoff = key.partition("@")
        rows.setdefault(metric, {})[cutoff] = value
    columns = list(dict.fromkeys(cutoff for row in rows.values() for cutoff in row))
    lines = [" " * 18 + "".join(f"{'@' + cutoff if cutoff else '':>10}" for cutoff in columns)]
    for metric, row in rows.items():
        cells = (f"{row[c]:10.4f}" if c in row else " " * 10 for c in columns)
        lines.append(f"{metric:18}" + "".join(cells))
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """Python numbers for numpy's and torch's, in nested dictionaries."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.item() if hasattr(value, "item") else value


def objective_function(
    config_dict: dict[str, Any] | None = None,
    config_file_list: list[str] | None = None,
    saved: bool = True,
) -> dict[str, Any]:
    """One trial of RecBole's `HyperTuning`: what `run` returns, and the ``model``'s name."""
    # A sampler draws numpy's numbers, which the config.yaml of a run does not hold.
    outcome = run(None, None, config_file_list, _plain(config_dict or {}), saved)
    return {"model": RunDirectory(outcome["run_dir"]).read_config()["model"], **outcome}


def plan(
    model: str | None = None,
    dataset: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
) -> MemoryPlan:
    """The memory that a run of these arguments would take; nothing is loaded or trained for it.

    Raises:
        UserError: anything the user can mend; that it does not fit is for `MemoryPlan.check`.
    """
    config, _, (train_data, *_) = _look(model, dataset, config_file_list, config_dict)
    dataset = train_data._dataset
    give_tasks(config, train_data)
    width = width_of(make_content(config, dataset))
    return MemoryPlan(config, train_data, embedding_width(config, dataset), width)


def check(
    model: str | None = None,
    dataset: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
) -> GradientCheck:
    """Whether all that must learn in a run of these arguments does, tried on one batch.

    Raises:
        UserError: anything the user can mend.
    """
    config, data, (train_data, *_) = _look(model, dataset, config_file_list, config_dict)
    check_base_model(config)
    give_teacher(config, train_data, data.identity)
    give_tasks(config, train_data)
    train_data.dislikes = find_dislikes(config, train_data._dataset)
    model = make_model(config, train_data._dataset, item_vectors(config, train_data._dataset))
    return check_gradients(config, model, train_data)


def _look(*arguments) -> tuple:
    """Config, dataset and loaders, without a run directory."""
    config = begun_config(*arguments)
    if not is_ours(config):
        raise UserError(f"model {config['model']}: only {', '.join(TRAINED)} can be looked at so")
    if PartialState().num_processes > 1:
        raise UserError("--plan and --check look at one process: start without a launcher")
    start_logging(None)
    check_rules(config)
    require_files(config)
    check_item_embedding(config)
    return config, *load_data(config)
