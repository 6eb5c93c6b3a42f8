"""The command line: RecBole's arguments in, an exit code out.

Nothing heavy is imported before the arguments are read, so that a typo is answered at once.
"""

import gc
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from recbole_etegrec.config.values import DEFAULT_MODEL, check_chosen, check_values, parse_value
from recbole_etegrec.errors import Interrupted, TrainingError, UserError, unwritable
from recbole_etegrec.storage.lock import held_output
from recbole_etegrec.storage.printable import one_line, printable
from recbole_etegrec.storage.run_directory import RunDirectory

HELP = """\
usage: {program} [--model=NAME] [--dataset=NAME] [--config_files="A.yaml B.yaml"] [--KEY=VALUE ...]
       {program} --resume=RUN_DIR
       {program} --plan [the arguments of a run]
       {program} --check [the arguments of a run]
       {program} compare --models=A,B,A+OVERLAY [--seeds=1,2] [--ablations=X,Y] [--runs=DIR,DIR]
           [--KEY=VALUE ...]
       {program} ensemble RUN_DIR... --out=DIR [--weights=1,1] [--KEY=VALUE ...]
       {program} ensemble --seeds=1,2,3 --out=DIR [--jobs=N] [the arguments of a run]
       {program} codes RUN_DIR [--item=TOKEN]
       {program} recommend RUN_DIR --users=A,B|--users-file=FILE|--all|--history=X,Y [--k=10]
           [--exclude-history] [--split=valid|test] [--out=FILE.parquet|FILE.csv|FILE.jsonl]
       {program} explain RUN_DIR --user=A|--history=X,Y [--item=TOKEN] [--alternatives=3]
       {program} report RUN_DIR... [--out=FILE.html] [--png] [--examples=False]
       {program} add-items RUN_DIR --items=FILE.item [--embeddings=FILE.npy]
       {program} remove-items RUN_DIR --items=FILE.item|--all
       {program} export RUN_DIR --out=DIR
       {program} serve RUN_DIR|EXPORT_DIR [--host=127.0.0.1] [--port=8000] [--exclude-history]
           [--allowed-hosts=NAME,...]
       {program} doctor [--data_path=DIR]
       {program} check-data NAME [--data_path=DIR]
       {program} prepare amazon|csv|jsonl|etegrec --out=DIR [--KEY=VALUE ...]

Train and test a model of this plugin or of RecBole (default: ETEGRecLlama on ml-100k).
Any key of properties/ or of RecBole may be given; it wins over the config files.
`--resume=RUN_DIR` goes on with a run that was stopped; `--resume` beside --run_dir and the run's
other arguments goes on if that run has begun, and starts it if not.
`--plan` prints the memory that the run would take, and refuses what does not fit.
`--check` takes a few steps on one batch and prints whether all that must learn does.
`compare` trains models on one dataset with each seed and writes one table; again, it goes on. It
ends with 1 where a run has failed. SASRec+tuned is SASRec with --config_files=tuned/SASRec.
`ensemble` joins finished runs of one dataset, or trains one with each seed and then joins them; the
directory it writes is used like that of a run. Again, it goes on.
`codes` prints how well a finished run codes its items, and the items near to one.
`recommend` ranks for users after all they have done, or after items; with --out, again, it goes on.
`explain` prints how likely each code of a recommended item is, and the others there were.
`report` writes a page with the metrics, curves and recommendations of runs, or of a comparison.
`add-items` lets a finished run know and recommend items that it was not trained on.
`remove-items` takes such items out again.
`export` writes the model of a run as one directory that needs no dataset.
`serve` answers requests for recommendations over HTTP, and shows a page to try them on.
`doctor` prints versions, devices, models and datasets.
`check-data` reads a dataset through and names file, line and field of what is wrong.
`prepare` makes a dataset of a raw dump; without --out it says which arguments it takes.
Exit codes: 0 success, 2 input you can mend, 130 or 143 interrupted, 1 anything else.
"""

NAMED = ("model", "dataset", "config_files")
# What `compare` takes besides keys, or takes more of than a run does.
COMPARISON = ("models", "seeds", "jobs", "out", "ablations", "config_files", "exclude_history")
COMPARISON += ("runs", "seed", "run_dir", "resume")
ENSEMBLE_KEYS = ("model", "seeds", "jobs", "out", "weights", "config_files")
SWITCHES = ("--resume", "--plan", "--check", "--overwrite", "--all", "--exclude-history", "--png")


def _print(text: str) -> None:
    sys.stdout.write(printable(text))


def parse_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """The ``--key=value`` pairs of a command line, values as text.

    `model`, `dataset` and `config_files` may also be given as ``--key value``.

    Raises:
        UserError: an argument has another form, or a key comes twice with different values.
    """
    values: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        key, equals, value = argument.removeprefix("--").partition("=")
        if argument in SWITCHES:
            value = equals = "True"
        elif not equals and key in NAMED:
            value = next(rest, "")
            equals = value != ""
        if not argument.startswith("--") or not key or not equals:
            raise UserError(f"argument '{argument}': expected --key=value (see --help)")
        if key in NAMED and not value.strip():
            raise UserError(f"--{key} is empty: name one, or leave it out")
        if values.setdefault(key, value) != value:
            raise UserError(f"--{key} is given twice: {values[key]} and {value}")
    return values


def _run(arguments: Sequence[str]) -> None:
    values = parse_arguments(arguments)
    model, dataset, files = (values.pop(key, "") for key in NAMED)

    look = [name for name in ("plan", "check") if values.pop(name, "False").lower() != "false"]
    check_chosen([model] if model else [], dataset, files.split(), values)
    if look:
        return _look(look, model, dataset, files.split(), values)
    _refuse_taken(values)

    from accelerate import PartialState

    from recbole_etegrec.quick_start import run

    run(model, dataset, config_file_list=files.split(), config_dict=values)
    # A wrapper must not outlive its process group: freed last, DDP would end it while it holds
    # the GIL, which a thread of gloo may be waiting for.
    gc.collect()
    PartialState().destroy_process_group()


def _refuse_taken(values: dict[str, str]) -> None:
    """Look at the folder that a run is to write to, before anything slow is imported."""
    if os.environ.get("RANK", "0") != "0":
        return  # the main process alone holds it
    resume, run_dir = values.get("resume", "False"), values.get("run_dir", "")
    if resume.lower() not in ("true", "false"):
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


def _doctor(arguments: Sequence[str]) -> None:
    values = parse_arguments(arguments)

    from recbole_etegrec.preflight.doctor import report

    _print(report(values.get("data_path", "dataset/")))


def _check_data(arguments: Sequence[str]) -> None:
    values = parse_arguments(arguments[1:])

    from recbole_etegrec.prepare.check_data import check_data

    report, errors = check_data(arguments[0] if arguments else "", values)
    _print(report)
    if errors:
        raise UserError(f"dataset '{arguments[0]}': {errors} errors, see above")


def _prepare(arguments: Sequence[str]) -> None:
    values = parse_arguments(arguments[1:])
    with _held(values):
        from recbole_etegrec.prepare.command import prepare

        _print(prepare(arguments[:1], values))


def _compare(arguments: Sequence[str]) -> None:
    values = parse_arguments(arguments)
    named = [name.partition("+")[0].strip() for name in values.get("models", "").split(",")]
    models = [name for name in named if name]
    models += [DEFAULT_MODEL] if "ablations" in values else []
    if models:
        files = values.get("config_files", "").split()
        check_chosen(models, values.get("dataset", ""), files, values, COMPARISON)

    from recbole_etegrec.compare.command import compare

    table, failed = compare(values)
    _print(table)
    if failed:
        raise TrainingError(f"{len(failed)} of the runs failed: {', '.join(failed[:5])}; see above")


def _ensemble(arguments: Sequence[str]) -> None:
    run_dirs = [argument for argument in arguments if not argument.startswith("-")]
    values = parse_arguments([argument for argument in arguments if argument.startswith("-")])
    if "seeds" in values:
        files = values.get("config_files", "").split()
        models = [values.get("model") or DEFAULT_MODEL]
        check_chosen(models, values.get("dataset", ""), files, values, ENSEMBLE_KEYS)
    else:
        check_values({key: parse_value(key, value) for key, value in values.items()})

    from recbole_etegrec.ensemble.command import ensemble

    _print(ensemble(run_dirs, values))


def _of_run(command: str, arguments: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The directory of a run, which comes first, and the other arguments."""
    run_dir = "".join(arguments[:1])
    if not run_dir or run_dir.startswith("-"):
        raise UserError(f"{command}: expected the directory of a run (see --help)")
    values = parse_arguments(arguments[1:])
    check_values({key: parse_value(key, value) for key, value in values.items()})
    _be_quiet()
    return run_dir, values


def _held(values: dict[str, str]) -> AbstractContextManager:
    """Hold what a command writes before its slow imports, so that of two at once one is refused."""
    path = Path(values.get("out", ""))
    return held_output(path) if path.name and path.parent.is_dir() else nullcontext()


def _be_quiet() -> None:
    """Let a command print its result alone, and not what is logged when a run is loaded."""
    from recbole_etegrec.storage.logs import start_logging

    start_logging(None)


def _codes(arguments: Sequence[str]) -> None:
    run_dir, values = _of_run("codes", arguments)

    from recbole_etegrec.inference.codes import report

    _print(report(run_dir, values.pop("item", None), values))


def _recommend(arguments: Sequence[str]) -> None:
    run_dir, values = _of_run("recommend", arguments)

    with _held(values):
        from recbole_etegrec.inference.command import recommend_command

        for text in recommend_command(run_dir, values):
            _print(text)


def _explain(arguments: Sequence[str]) -> None:
    run_dir, values = _of_run("explain", arguments)

    from recbole_etegrec.inference.command import explain_command

    _print(explain_command(run_dir, values))


def _report(arguments: Sequence[str]) -> None:
    run_dirs = [argument for argument in arguments if not argument.startswith("-")]
    if not run_dirs:
        raise UserError("report: expected the directories of runs (see --help)")
    values = parse_arguments([argument for argument in arguments if argument.startswith("-")])
    look = values.pop("examples", "True").lower() != "false"
    png = values.pop("png", "False").lower() != "false"
    _be_quiet()

    with _held(values):
        from recbole_etegrec.report import report

        _print(f"{report(run_dirs, values.pop('out', None), look, values, png)}\n")


def _add_items(arguments: Sequence[str]) -> None:
    run_dir, values = _of_run("add-items", arguments)
    if "items" not in values:
        raise UserError("add-items: expected --items=FILE.item (see --help)")

    run = RunDirectory(run_dir)
    run.read_config()
    with run.held():
        from recbole_etegrec.inference.new_items import add_items

        items, embeddings = values.pop("items"), values.pop("embeddings", None)
        _print(add_items(run_dir, items, embeddings, values))


def _remove_items(arguments: Sequence[str]) -> None:
    run_dir, values = _of_run("remove-items", arguments)
    everything = values.pop("all", "False").lower() != "false"
    if everything == ("items" in values):
        raise UserError("remove-items: expected --items=FILE.item or --all (see --help)")

    run = RunDirectory(run_dir)
    run.read_config()
    with run.held():
        from recbole_etegrec.inference.new_items import remove_items

        _print(remove_items(run_dir, values.pop("items", None), values))


def _export(arguments: Sequence[str]) -> None:
    run_dir, values = _of_run("export", arguments)
    if "out" not in values:
        raise UserError("export: expected --out=DIR (see --help)")

    with _held(values):
        from recbole_etegrec.inference.export import export_run

        _print(export_run(run_dir, values.pop("out"), values))


def _serve(arguments: Sequence[str]) -> None:
    directory, values = _of_run("serve", arguments)

    from recbole_etegrec.serve.command import serve_command

    serve_command(directory, values)


# By the first argument; without one of these a model is trained.
COMMANDS = {
    "add-items": _add_items,
    "check-data": _check_data,
    "codes": _codes,
    "compare": _compare,
    "doctor": _doctor,
    "ensemble": _ensemble,
    "explain": _explain,
    "export": _export,
    "prepare": _prepare,
    "recommend": _recommend,
    "remove-items": _remove_items,
    "report": _report,
    "serve": _serve,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if any(argument in ("-h", "--help") for argument in arguments):
            sys.stdout.write(HELP.format(program="recbole-etegrec"))
        elif arguments and arguments[0] in COMMANDS:
            COMMANDS[arguments[0]](arguments[1:])
        else:
            _run(arguments)
        sys.stdout.flush()  # lest a full disk be noticed when nobody can say so any more
    except UserError as error:
        sys.stderr.write(f"error: {one_line(str(error))}\n")
        return 2
    except TrainingError as error:
        sys.stderr.write(f"error: {one_line(str(error))}\n")
        return 1
    except Interrupted as error:
        sys.stderr.write(f"{one_line(str(error))}\n")
        return 128 + error.number
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except Exception as error:
        if isinstance(error, OSError) and (message := unwritable(error)):
            sys.stderr.write(f"error: {message}\n")
            return 2
        # The run's log, where there is one already, keeps the traceback too.
        logging.getLogger(__name__).exception("the run failed")
        return 1
    return 0
