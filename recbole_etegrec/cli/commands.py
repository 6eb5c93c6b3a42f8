"""What each command does: its arguments are looked at, then what it needs is imported."""

import gc
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from recbole_etegrec.cli import table
from recbole_etegrec.cli.arguments import PROGRAM, check_names, read
from recbole_etegrec.config.datasets import check_dataset
from recbole_etegrec.config.models import check_own
from recbole_etegrec.config.values import (
    DEFAULT_MODEL,
    check_chosen,
    check_values,
    known_keys,
    parse_value,
)
from recbole_etegrec.errors import TrainingError, UserError, nearest
from recbole_etegrec.storage.lock import held_output
from recbole_etegrec.storage.printable import printable
from recbole_etegrec.storage.run_directory import RunDirectory

# What `compare` takes besides keys, or takes more of than a run does.
COMPARISON = ("models", "seeds", "jobs", "out", "ablations", "config_files", "exclude_history")
COMPARISON += ("runs", "seed", "run_dir", "resume")
ENSEMBLE_KEYS = ("model", "seeds", "jobs", "out", "weights", "config_files")


def _print(text: str) -> None:
    sys.stdout.write(printable(text))


# Runs ---------------------------------------------------------------------------------------------


def _run(arguments: Sequence[str]) -> None:
    values = read("run", table.RUN, arguments).values
    model, dataset, files = (_named(values, key) for key in ("model", "dataset", "config_files"))
    look = [name for name in ("plan", "check") if values.pop(name, "False").lower() != "false"]
    models, flags = [model] if model else [], _names(table.RUN)
    chosen = check_chosen(models, dataset, files.split(), values, flags=flags)
    if not look:
        _refuse_taken(values)
    check_dataset(chosen)
    if look:
        return _look(look, model, dataset, files.split(), values)

    from accelerate import PartialState

    from recbole_etegrec.quick_start import run

    run(model, dataset, config_file_list=files.split(), config_dict=values)
    # A wrapper must not outlive its process group: freed last, DDP would end it while it holds
    # the GIL, which a thread of gloo may be waiting for.
    gc.collect()
    PartialState().destroy_process_group()


def _named(values: dict[str, str], key: str) -> str:
    value = values.pop(key, None)
    if value is not None and not value.strip():
        raise UserError(f"--{key} is empty: name one, or leave it out")
    return value or ""


def _names(command: table.Command) -> list[str]:
    return [flag.name for flag in command.flags]


def _refuse_taken(values: dict[str, str]) -> None:
    """Look at the folder that a run is to write to, before anything slow is imported."""
    if os.environ.get("RANK", "0") != "0":
        return  # the main process alone holds it
    resume, run_dir = values.get("resume", "False"), values.get("run_dir", "")
    if resume.lower() not in ("true", "false"):
        RunDirectory(resume).read_config()
        RunDirectory(resume).refuse_finished()
        RunDirectory(resume).refuse_held()
    elif run_dir.lower() in ("", "none", "null", "~"):
        return  # a new one is made
    elif resume.lower() == "true":
        RunDirectory(run_dir).refuse_held()
    else:
        RunDirectory(run_dir).refuse_taken()


def _look(names: list[str], *arguments) -> None:
    from recbole_etegrec.quick_start import check, plan

    if "plan" in names:
        memory = plan(*arguments)
        _print(f"{memory}\n")
        memory.check()
    if "check" in names:
        report = check(*arguments)
        _print(str(report))
        if not report.ok:
            raise TrainingError(f"{len(report.problems)} problems, see above")


def _compare(arguments: Sequence[str]) -> None:
    values = read("compare", table.COMPARE, arguments).values
    named = [name.partition("+")[0].strip() for name in values.get("models", "").split(",")]
    models = [name for name in named if name]
    models += [DEFAULT_MODEL] if "ablations" in values else []
    for key, meant in table.COMPARE.instead:
        if key in values:
            raise UserError(f"compare: unknown argument --{key}; did you mean '{meant}'?")
    if models:
        files = values.get("config_files", "").split()
        dataset, flags = values.get("dataset", ""), _names(table.COMPARE)
        check_dataset(check_chosen(models, dataset, files, values, own=COMPARISON, flags=flags))

    from recbole_etegrec.compare.command import compare

    page, failed = compare(values)
    _print(page)
    if failed:
        raise TrainingError(f"{len(failed)} of the runs failed: {', '.join(failed[:5])}; see above")


def _ensemble(arguments: Sequence[str]) -> None:
    run_dirs, values = read("ensemble", table.ENSEMBLE, arguments)
    if "seeds" in values:
        files = values.get("config_files", "").split()
        models = [values.get("model") or DEFAULT_MODEL]
        flags = _names(table.ENSEMBLE)
        dataset = values.get("dataset", "")
        chosen = check_chosen(models, dataset, files, values, own=ENSEMBLE_KEYS, flags=flags)
        check_dataset(chosen)
    else:
        check_names("ensemble", table.ENSEMBLE, values, known_keys(DEFAULT_MODEL))
        check_values({key: parse_value(key, value) for key, value in values.items()})

    from recbole_etegrec.ensemble.command import ensemble

    _print(ensemble(run_dirs, values))


def _report(arguments: Sequence[str]) -> None:
    directories, values = read("report", table.REPORT, arguments)
    flags = {key: values.pop(key) for key in _names(table.REPORT) if key in values}
    check_names("report", table.REPORT, values, known_keys(DEFAULT_MODEL))
    for directory in directories:
        if not Path(directory).is_dir():
            RunDirectory(directory).read_config()  # which says what is missing
    look = flags.get("examples", "True").lower() != "false"
    png = flags.get("png", "False").lower() != "false"
    _be_quiet()

    with _held(flags):
        from recbole_etegrec.report import report

        path = report(directories, flags.get("out"), look, values, png)
        _print(f"{path}\n" + (f"{path.with_suffix('.png')}: its charts\n" if png else ""))


# Trained models -----------------------------------------------------------------------------------


def _of_run(
    name: str, arguments: Sequence[str], exported: bool = False
) -> tuple[str, dict[str, str]]:
    """The directory that comes first, looked at, and the other arguments.

    Args:
        exported: whether it may be that of an exported model.

    Raises:
        UserError: it is no run's, the run has no model yet, or an argument is unknown.
    """
    command = table.COMMANDS[name]
    (directory,), values = read(name, command, arguments)
    run = RunDirectory(directory)
    if exported and not run.config.is_file() and (run.path / "config.json").is_file():
        check_names(name, command, values)
    else:
        if not run.config.is_file():  # a wrong value is as wrong without a run
            check_values({key: parse_value(key, value) for key, value in values.items()})
        config = run.read_config()
        if name != "recommend":
            check_own(config, run.path)
        model = config["model"]
        check_names(name, command, values, known_keys(model))
        check_values({key: parse_value(key, value) for key, value in values.items()}, model)
        if not run.read_result():
            run.refuse_unfinished()
            sys.stderr.write(f"{directory}: not finished; this is its best model so far\n")
    _be_quiet()
    return directory, values


def _held(values: dict[str, str]) -> AbstractContextManager:
    """Hold what a command writes before its slow imports, so that of two at once one is refused."""
    path = Path(values.get("out", ""))
    first = os.environ.get("RANK", "0") == "0"  # of several processes, which holds it for all
    return held_output(path) if first and path.name and path.parent.is_dir() else nullcontext()


def _be_quiet() -> None:
    """Let a command print its result alone, and not what is logged when a run is loaded."""
    from recbole_etegrec.storage.logs import start_logging

    start_logging(None)


def _codes(arguments: Sequence[str]) -> None:
    run_dir, values = _of_run("codes", arguments)

    from recbole_etegrec.inference.codes import report

    _print(report(run_dir, values.pop("item", None), values))


def _recommend(arguments: Sequence[str]) -> None:
    directory, values = _of_run("recommend", arguments, exported=True)

    with _held(values):
        from recbole_etegrec.inference.command import recommend_command

        for text in recommend_command(directory, values):
            _print(text)


def _explain(arguments: Sequence[str]) -> None:
    run_dir, values = _of_run("explain", arguments)

    from recbole_etegrec.inference.command import explain_command

    _print(explain_command(run_dir, values))


def _add_items(arguments: Sequence[str]) -> None:
    run_dir, values = _of_run("add-items", arguments)
    if "items" not in values:
        raise UserError("add-items: expected --items=FILE.item (see --help)")

    with RunDirectory(run_dir).held():
        from recbole_etegrec.inference.new_items import add_items

        items, embeddings = values.pop("items"), values.pop("embeddings", None)
        _print(add_items(run_dir, items, embeddings, values))


def _remove_items(arguments: Sequence[str]) -> None:
    run_dir, values = _of_run("remove-items", arguments)
    everything = values.pop("all", "False").lower() != "false"
    if everything == ("items" in values):
        raise UserError("remove-items: expected --items=FILE.item or --all (see --help)")

    with RunDirectory(run_dir).held():
        from recbole_etegrec.inference.new_items import remove_items

        _print(remove_items(run_dir, values.pop("items", None), values))


def _export(arguments: Sequence[str]) -> None:
    run_dir, values = _of_run("export", arguments)
    if "out" not in values:
        raise UserError("export: expected --out=DIR (see --help)")

    with _held(values):
        from recbole_etegrec.inference.export import export_run

        out, form = values.pop("out"), values.pop("format", "own")
        _print(export_run(run_dir, out, values, form))


def _serve(arguments: Sequence[str]) -> None:
    directory, values = _of_run("serve", arguments, exported=True)

    from recbole_etegrec.serve.command import serve_command

    serve_command(directory, values)


# Data and machine ---------------------------------------------------------------------------------


def _prepare(arguments: Sequence[str]) -> None:
    kind = arguments[0] if arguments else ""
    if kind not in table.PREPARE:
        known = ", ".join(table.PREPARE)
        if kind in ("-h", "--help"):
            lines = [f"  {kind:8} {what.summary}" for kind, what in table.PREPARE.items()]
            head = f"usage: {PROGRAM} prepare KIND ...\n       {PROGRAM} prepare KIND --help\n\n"
            return _print(head + "KIND is one of:\n" + "\n".join(lines) + "\n")
        raise UserError(f"prepare '{kind}': must be one of {known}{nearest(kind, table.PREPARE)}")
    values = read(f"prepare {kind}", table.PREPARE[kind], arguments[1:]).values
    with _held(values):
        from recbole_etegrec.prepare.command import prepare

        _print(prepare(kind, values))


def _check_data(arguments: Sequence[str]) -> None:
    (name,), values = read("check-data", table.CHECK_DATA, arguments)
    check_names("check-data", table.CHECK_DATA, values, known_keys(DEFAULT_MODEL))
    check_dataset({**values, "dataset": name})

    from recbole_etegrec.prepare.check_data import check_data

    report, errors = check_data(name, values)
    _print(report)
    if errors:
        raise UserError(f"dataset '{name}': {errors} errors, see above")


def _doctor(arguments: Sequence[str]) -> None:
    values = read("doctor", table.DOCTOR, arguments).values

    from recbole_etegrec.preflight.doctor import report

    _print(report(values.get("data_path", "dataset/")))


HANDLERS: dict[str, Callable[[Sequence[str]], None]] = {
    "run": _run,
    "compare": _compare,
    "ensemble": _ensemble,
    "report": _report,
    "recommend": _recommend,
    "explain": _explain,
    "codes": _codes,
    "serve": _serve,
    "add-items": _add_items,
    "remove-items": _remove_items,
    "export": _export,
    "prepare": _prepare,
    "check-data": _check_data,
    "doctor": _doctor,
}
