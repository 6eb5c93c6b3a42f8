"""The comparison of runs: a row a model, means over its seeds, as Markdown, CSV and JSON."""

from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from scipy.stats import ttest_rel

from recbole_etegrec.compare.measures import is_finished, per_user_file, read_measures
from recbole_etegrec.compare.plan import HISTORIES, Plan, PlannedRun
from recbole_etegrec.compare.plots import plots
from recbole_etegrec.config import Config
from recbole_etegrec.config.models import STANDS_ON
from recbole_etegrec.report.compared import COSTS, SIGNIFICANT, least_is_best
from recbole_etegrec.report.pictures import write_svgs
from recbole_etegrec.storage.atomic import replace_text
from recbole_etegrec.storage.records import damaged
from recbole_etegrec.storage.run_directory import RunDirectory

COMPARISON = "comparison.json"


def write_table(plan: Plan) -> str:
    """Write `comparison.json`, `.csv`, `.md` and `plots/` of finished runs; returns the `.md`."""
    records = [_record(run, plan.histories) for run in plan.runs]
    config = plan.runs[0].config
    tables = {history: _rows(records, history, config) for history in plan.histories}
    comparison = {
        "command": plan.command,
        "dataset": config["dataset"],
        "valid_metric": config["valid_metric"],
        "eval_args": config["eval_args"],
        "validated": HISTORIES[config["exclude_history"]],
        "tables": tables,
        "runs": records,
    }
    RunDirectory(plan.out).write_json(COMPARISON, comparison)
    replace_text(plan.out / "comparison.csv", _csv(tables))
    pictures = write_svgs(plan.out / "plots", plots(comparison))
    text = _markdown(comparison, plan.notes, pictures)
    replace_text(plan.out / "comparison.md", text)
    return text


def _record(run: PlannedRun, histories: list[str]) -> dict[str, Any]:
    """Read a run's numbers or its ``error``; a run that has not ended has neither."""
    record = {"model": run.label, "seed": run.config["seed"], "run_dir": str(run.path)}
    measures = read_measures(run.path)
    if "error" in measures:
        return {**record, "error": measures["error"]}
    if not is_finished(run.path, histories):
        return record
    result = RunDirectory(run.path).read_result()
    kept = ("best_valid_score", "epochs", "seconds")
    return {**record, **{key: result[key] for key in kept}, **measures}


def _rows(records: list[dict], history: str, config: Config) -> list[dict[str, Any]]:
    """Make a row for each model: seeds, errors, and each column's mean and standard deviation.

    The standard deviation is that of a sample; one seed has none.
    """
    rows = []
    for label in dict.fromkeys(record["model"] for record in records):
        own = [record for record in records if record["model"] == label]
        done = [record for record in own if "test_result" in record]
        values: dict[str, list[float]] = {}
        for record in done:
            valid = {f"valid {config['valid_metric']}": record["best_valid_score"]}
            costs = {name: record[name] for name in COSTS if name in record}
            for name, value in {**record["test_result"][history], **valid, **costs}.items():
                values.setdefault(name, []).append(value)
        rows.append(
            {
                "model": label,
                "seeds": [record["seed"] for record in done],
                "errors": [f"seed {r['seed']}: {r['error']}" for r in own if "error" in r],
                "columns": {name: _mean_and_deviation(found) for name, found in values.items()},
            }
        )
    _compare_users(rows, records, history, config["valid_metric"].lower())
    return rows


def _mean_and_deviation(values: list[float]) -> dict[str, float | None]:
    return {"mean": fmean(values), "std": stdev(values) if len(values) > 1 else None}


def _compare_users(rows: list[dict], records: list[dict], history: str, metric: str) -> None:
    """Add the p-values of paired t-tests over users.

    Each row but the best gets ``p``, against the best; each of the plugin's models gets
    ``beaten_by``, the baselines with a better mean and the p of each.
    """
    users = {row["model"]: _per_user(records, row["model"], history) for row in rows}
    tested = [row for row in rows if users[row["model"]] is not None]
    if not tested:
        return
    best = _best(tested, metric)
    for row in tested:
        if row is not best:
            row["p"] = _paired_p(users[best["model"]], users[row["model"]])
        if _is_own(row):
            row["beaten_by"] = [
                {
                    "model": other["model"],
                    "p": _paired_p(users[other["model"]], users[row["model"]]),
                }
                for other in tested
                if not _is_own(other) and _better(other, row, metric)
            ]


def _is_own(row: dict[str, Any]) -> bool:
    """Whether a row is of the plugin's models; one with an overlay begins with its model."""
    return row["model"].partition(" ")[0] in STANDS_ON


def _better(one: dict[str, Any], other: dict[str, Any], column: str) -> bool:
    means = [row["columns"][column]["mean"] for row in (one, other)]
    return means[0] != means[1] and _best([one, other], column) is one


def _paired_p(one: pd.Series, other: pd.Series) -> float:
    first, second = pd.concat([one, other], axis=1, join="inner").to_numpy().T
    # Of one user, or of equal ones, the test has no value.
    nothing = len(first) < 2 or np.array_equal(first, second)
    return 1.0 if nothing else float(ttest_rel(first, second).pvalue)


def _per_user(records: list[dict], label: str, history: str) -> pd.Series | None:
    """Average each user's metric over seeds; None if there are no such values."""
    paths = [
        per_user_file(Path(record["run_dir"]), history)
        for record in records
        if record["model"] == label and "test_result" in record
    ]
    if not paths or not all(path.is_file() for path in paths):
        return None
    seeds = []
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as file:
                seeds.append(pd.Series(file["values"].astype(float), index=file["users"]))
        except (OSError, ValueError, LookupError, EOFError, TypeError, BadZipFile) as error:
            raise damaged(path, error) from error
    return pd.concat(seeds, axis=1).mean(axis=1)


def _best(rows: list[dict], column: str) -> dict[str, Any]:
    """The row with the best mean in a column."""
    having = [row for row in rows if column in row["columns"]]
    best = min if least_is_best(column) else max
    return best(having, key=lambda row: row["columns"][column]["mean"])


def _columns(rows: list[dict]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["columns"]))


def _csv(tables: dict[str, list[dict]]) -> str:
    lines = []
    for history, rows in tables.items():
        for row in rows:
            line = {"history": history, "model": row["model"], "seeds": len(row["seeds"])}
            for name, value in row["columns"].items():
                line |= {name: value["mean"], f"{name} std": value["std"]}
            lines.append({**line, "p": row.get("p"), "errors": "; ".join(row["errors"])})
    return pd.DataFrame(lines).to_csv(index=False)


def _markdown(comparison: dict[str, Any], notes: list[str], pictures: list[str]) -> str:
    evaluation, metric = comparison["eval_args"], comparison["valid_metric"]
    mode, split = evaluation["mode"]["test"], evaluation["split"]
    lines = [
        f"# {comparison['dataset']}",
        "",
        f"Test metrics (split {split}, mode {mode}), mean ± standard deviation over seeds; the",
        "best of each column is bold. p: paired t-test over users, each the mean over seeds,",
        f"against the model with the best test {metric}, on that metric. Validation, which stops",
        f"training and picks the best model: history {comparison['validated']}.",
        "",
        _sameness(comparison["runs"]),
    ]
    for history, rows in comparison["tables"].items():
        lines += ["", f"## Items of a user's history {history}, for every model alike", ""]
        lines += _markdown_table(rows)
        lines += ["", *_losses(rows, metric)]
        own = [name for name in pictures if name.startswith(f"{history}_")]
        lines += ["", *(f"![{name.removesuffix('.svg')}](plots/{name})" for name in own)]
    lines += ["", "## How", "", *(f"- {note}" for note in [*_facts(comparison), *notes])]
    return "\n".join(lines) + "\n"


def _losses(rows: list[dict], metric: str) -> list[str]:
    """List, for each of the plugin's models, the baselines that beat it."""
    lines = []
    for row in rows:
        if "beaten_by" in row:
            found = [f"{one['model']} ({_significance(one['p'])})" for one in row["beaten_by"]]
            beaten = f"beaten on test {metric} by {', '.join(found) or 'no baseline here'}"
            lines.append(f"- {row['model']}: {beaten}.")
    return lines


def _significance(p: float) -> str:
    return f"{'significant' if p < SIGNIFICANT else 'not significant'}, p = {p:.2g}"


def _facts(comparison: dict[str, Any]) -> list[str]:
    """List how the runs were made: command, seeds, dataset, machine and time."""
    runs = comparison["runs"]
    seeds = ", ".join(map(str, dict.fromkeys(run["seed"] for run in runs)))
    # Each once; models may filter a dataset differently, and runs may be of several machines.
    counts = dict.fromkeys(
        ", ".join(f"{count:,} {name}" for name, count in run["dataset"].items())
        for run in runs
        if "dataset" in run
    )
    machines = dict.fromkeys(run["machine"] for run in runs if "machine" in run)
    minutes = sum(run.get("seconds", 0) for run in runs) / 60
    return [
        f"Command: `{comparison['command']}`",
        f"Seeds: {seeds}",
        f"{comparison['dataset']}: {' or '.join(counts) or 'not counted'}",
        f"Machine: {' or '.join(machines) or 'not known'}",
        f"Time of the finished runs: {minutes:,.1f} minutes",
    ]


def _sameness(records: list[dict]) -> str:
    """Whether the models of each seed were tested on the same pairs of user and item."""
    done = [record for record in records if "test_result" in record]
    for seed in dict.fromkeys(record["seed"] for record in done):
        tests: dict[str, list[str]] = {}
        for record in done:
            if record["seed"] == seed:
                name = f"{record['model']} ({record['pairs']:,} pairs)"
                tests.setdefault(record["digest"], []).append(name)
        if len(tests) > 1:
            apart = "; ".join(", ".join(names) for names in tests.values())
            return f"**Not comparable**: seed {seed} has other pairs of user and item for: {apart}."
    pairs = " and ".join(f"{count:,}" for count in sorted({record["pairs"] for record in done}))
    return f"All were tested on the same {pairs or 'no'} pairs of user and item."


def _markdown_table(rows: list[dict]) -> list[str]:
    columns = _columns(rows)
    best = {column: _best(rows, column)["columns"][column]["mean"] for column in columns}
    titles = ["model", "seeds", *(name.replace("_", " ") for name in columns), "p"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for row in rows:
        cells = [_cell(row["columns"].get(name), name, best[name]) for name in columns]
        p = f"{row['p']:.2g}" if "p" in row else ""
        seeds = "; ".join([", ".join(map(str, row["seeds"])) or "none", *row["errors"]])
        cells = [row["model"], seeds.replace("|", "\\|"), *cells, p]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cell(value: dict[str, float | None] | None, name: str, best: float) -> str:
    if value is None:
        return ""
    form = COSTS.get(name, ".4f")
    mean = format(value["mean"], form)
    mean = f"**{mean}**" if value["mean"] == best else mean
    return mean if value["std"] is None else f"{mean} ± {format(value['std'], form)}"
