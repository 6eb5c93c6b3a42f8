"""What a report takes from `compare`: the runs of a comparison, and its tables."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recbole.evaluator.register import smaller_metrics

from recbole_etegrec.errors import UserError
from recbole_etegrec.runs.recorded_run import RecordedRun
from recbole_etegrec.storage.records import NUMBER, read_json
from recbole_etegrec.storage.run_directory import RunDirectory

_FILE = "comparison.json"
_COLUMN = {"mean": NUMBER, "std": (*NUMBER, None)}
_ROW = {"model": str, "columns": {"*": _COLUMN}, "p?": NUMBER}
_SHAPE = {
    "dataset": str,
    "valid_metric": str,
    "tables": {"*": [_ROW]},
    "runs": [{"run_dir": str}],
}
# What a model costs, and how that is printed; all else is a metric.
COSTS = {"parameters": ",.0f", "seconds": ",.0f", "memory_gib": ".2f"}
SIGNIFICANT = 0.05


def compared_runs(paths: Sequence[str]) -> list[str]:
    """Replace each comparison's directory among the paths by those of its runs that have begun.

    Raises:
        UserError: no run of a comparison has begun.
    """
    found: dict[str, None] = {}
    for path in paths:
        file = Path(path, _FILE)
        if not file.is_file():
            found[path] = None
            continue
        recorded = [Path(run["run_dir"]) for run in read_json(file, _SHAPE)["runs"]]
        # By name: the directory may have been moved. Runs that ended elsewhere are not below it.
        places = ([Path(path, run.name), run] for run in recorded)
        begun = ([one for one in found if (one / "config.yaml").exists()] for found in places)
        runs = [str(found[0]) for found in begun if found]
        if not runs:
            raise UserError(f"{path}: no run of this comparison has begun")
        found |= dict.fromkeys(runs)
    return list(found)


def read_comparisons(runs: Iterable[RecordedRun]) -> list[dict[str, Any]]:
    """Read the comparisons that these runs belong to, each once."""
    folders = dict.fromkeys(run.directory.path.parent for run in runs)
    found = [RunDirectory(folder).read_json(_FILE, _SHAPE) for folder in folders]
    return [comparison for comparison in found if comparison]


def rows_of(rows: list[dict]) -> tuple[list[str], list[tuple[str, list[tuple[str, bool]]]]]:
    """Titles of the columns, and for each model its cells, text and whether it is marked."""
    names = list(dict.fromkeys(name for row in rows for name in row["columns"]))
    body = []
    for row in rows:
        cells = [_cell(row, name, rows) for name in names]
        p = row.get("p")
        cells.append(("" if p is None else f"{p:.2g}", p is not None and p >= SIGNIFICANT))
        body.append((row["model"], cells))
    return ([*(name.replace("_", " ") for name in names), "p"] if names else []), body


def least_is_best(column: str) -> bool:
    """Whether less is better in a column: in costs, and in metrics such as RMSE."""
    metric = column.removeprefix("valid ").partition("@")[0].lower()
    return column in COSTS or metric in smaller_metrics


def _cell(row: dict, name: str, rows: list[dict]) -> tuple[str, bool]:
    column = row["columns"].get(name)
    if column is None:
        return "–", False
    means = [other["columns"][name]["mean"] for other in rows if name in other["columns"]]
    best = min if least_is_best(name) else max
    form = COSTS.get(name, ".4f")
    text = format(column["mean"], form)
    if column["std"] is not None:
        text += f" ± {format(column['std'], form)}"
    return text, column["mean"] == best(means)
