"""The comparison in charts: test metrics by model, and quality against training time."""

import math
from typing import Any

from recbole_etegrec.config import DEFAULT_MODEL
from recbole_etegrec.report.charts import Axis, Band, Bar, Series, bar_chart, line_chart

_TICKS = (1, 2, 5)


def plots(comparison: dict[str, Any]) -> list[tuple[str, str]]:
    """Stems of files and their figures, for what `comparison.json` holds.

    It draws the test metrics that have the cutoff of the validation metric.
    """
    metric = comparison["valid_metric"].lower()
    figures = []
    for history, rows in comparison["tables"].items():
        done = [row for row in rows if metric in row["columns"]]
        if not done:
            continue
        cutoff = metric.partition("@")[2]
        names = [name for name in done[0]["columns"] if name.partition("@")[2] == cutoff]
        names = [name for name in names if cutoff and not name.startswith("valid ")] or [metric]
        figures += [(f"{history}_{name}", _bars(done, name, history)) for name in names]
        figures.append((f"{history}_seconds", _seconds(done, metric, history)))
    return figures


def _bars(rows: list[dict], name: str, history: str) -> str:
    """Draw a bar for each model, with a standard deviation over seeds to each side of its end."""
    columns = [(_short(row["model"]), row["columns"][name]) for row in rows]
    deviation = any(column["std"] is not None for _, column in columns)
    title = f"Test {name}, history {history}{', ± deviation over seeds' if deviation else ''}"
    groups = [(label, [Bar("", column["mean"], column["std"] or 0.0)]) for label, column in columns]
    return bar_chart(title, groups, ".4f")


def _seconds(rows: list[dict], metric: str, history: str) -> str:
    """Draw a point for each model over its training time, on a logarithmic axis."""
    series = [
        Series(
            _short(row["model"]),
            [(_log(row["columns"]["seconds"]["mean"]), row["columns"][metric]["mean"])],
        )
        for row in rows
    ]
    places = [one.points[0][0] for one in series]
    low, high = min(places) - 0.15, max(places) + 0.15
    ticks = [
        (math.log10(factor) + power, f"{factor * 10.0**power:g}")
        for power in range(math.floor(low), math.ceil(high) + 1)
        for factor in (_TICKS if high - low < 2 else (1,))
    ]
    ticks = [tick for tick in ticks if low <= tick[0] <= high]
    title = f"Test {metric} and training time, history {history}"
    return line_chart(title, series, Axis("seconds, log", [Band(low, high, "final")], ticks))


def _log(seconds: float) -> float:
    return math.log10(max(seconds, 0.01))


def _short(label: str) -> str:
    """Leave out the model that most overlays are of, as long labels are cut."""
    return label.removeprefix(f"{DEFAULT_MODEL} ")
