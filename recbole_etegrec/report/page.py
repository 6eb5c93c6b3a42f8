"""The page of a report: one HTML file without scripts or network."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from recbole.evaluator.register import smaller_metrics

from recbole_etegrec.config import is_ours
from recbole_etegrec.errors import UserError
from recbole_etegrec.report.charts import bar_chart
from recbole_etegrec.report.compared import compared_runs, read_comparisons, rows_of
from recbole_etegrec.report.curves import code_charts, comparison, epochs_of, loss_charts
from recbole_etegrec.report.pictures import CHART_STYLE, STYLE, check_png, write_pngs
from recbole_etegrec.report.ranking import (
    Example,
    Group,
    Rankings,
    by_age,
    by_bins,
    by_frequency,
    examples,
    rank,
)
from recbole_etegrec.runs.recorded_run import RecordedRun, read_run
from recbole_etegrec.storage.atomic import replace_text
from recbole_etegrec.storage.lock import held_output

# Keys that say where files are, or stand in the first table.
_KNOWN = {"data_path", "embedding_cache", "checkpoint_dir", "model", "dataset", "seed"}
_STAGES = (
    "Shaded: the tokenizer's pretraining and the alternation, darker where the tokenizer trains "
    "and lighter where the recommender does; unshaded: the final phase."
)


def report(
    run_dirs: Sequence[str],
    out: str | None = None,
    look: bool = True,
    config_dict: dict[str, Any] | None = None,
    png: bool = False,
) -> Path:
    """Write a page about runs, finished or not.

    Args:
        run_dirs: directories of runs, or of whole comparisons.
        out: the file; ``report.html`` in the first of these directories if not given.
        look: whether models are loaded, for results by groups of users and for examples.
        config_dict: overrides keys of the runs' configs when they are loaded.
        png: whether each chart is written as a PNG too, in a folder beside the file.

    Returns:
        The file.

    Raises:
        UserError: a directory is no run's, a run cannot be loaded, or the file cannot be written.
    """
    if png:
        check_png()
    path = Path(out) if out else Path(run_dirs[0]).absolute() / "report.html"
    runs = _runs(run_dirs)
    with held_output(path):
        html = _page(runs, look, config_dict)
        try:
            replace_text(path, html)
        except OSError as error:
            raise UserError(f"out {path}: cannot be written ({error.strerror or error})") from error
        if png:
            write_pngs(path.with_suffix(".png"), html)
    return path


def _runs(run_dirs: Sequence[str]) -> list[RecordedRun]:
    """Read the runs, those of a model together, under names that tell them apart."""
    run_dirs = compared_runs(run_dirs)
    runs = [read_run(path) for path in run_dirs]
    if len({run.name for run in runs}) < len(runs):
        runs = [run._replace(name=path) for run, path in zip(runs, run_dirs, strict=True)]
    models = [run.config["model"] for run in runs]
    return sorted(runs, key=lambda run: models.index(run.config["model"]))


def _page(runs: list[RecordedRun], look: bool, config_dict: dict[str, Any] | None) -> str:
    sections = [_section(run, look, config_dict) for run in runs if is_ours(run.config)]
    title = f"{len(runs)} runs" if len(runs) > 1 else runs[0].name
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        '</title><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>\n{STYLE}{CHART_STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"{_head(runs)}\n{''.join(sections)}</body></html>\n"
    )


# The head -----------------------------------------------------------------------------------------


def _head(runs: list[RecordedRun]) -> str:
    facts = ("Model", "Dataset", "Seed", "Date", "Epochs", "Time")
    parts = [_table("Runs", ("Run", *facts), [[run.name, *_facts(run)] for run in runs])]
    parts += [_compared(comparison) for comparison in read_comparisons(runs)]
    parts.append(_metrics("Test", runs, "test_result"))
    parts.append(_metrics("Validation, all users", runs, "best_valid_result"))
    if len(runs) > 1:
        parts.append(_differences(runs))
        parts.append(comparison(runs))
    if others := [run.name for run in runs if not is_ours(run.config)]:
        parts.append(_note(f"RecBole's own models have no curves here: {', '.join(others)}."))
    return "\n".join([*parts, *_versions(runs)])


def _facts(run: RecordedRun) -> list[str]:
    written = run.directory.result if run.result else run.directory.config
    date = datetime.fromtimestamp(written.stat().st_mtime)
    return [
        str(run.config["model"]),
        str(run.config["dataset"]),
        str(run.config["seed"]),
        f"{date:%Y-%m-%d %H:%M}",
        str(run.result.get("epochs", len(epochs_of(run)))),
        _duration(run.result["seconds"]) if run.result else "not finished",
    ]


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s"


def _metrics(caption: str, runs: list[RecordedRun], key: str) -> str:
    """A row for each finished run; of several on one dataset the best values are marked."""
    results = [run.result.get(key) or {} for run in runs]
    datasets = [run.config["dataset"] for run in runs]
    names = list(dict.fromkeys(name for result in results for name in result))
    if not names:
        return ""
    rows = []
    for run, result in zip(runs, results, strict=True):
        cells = [f"<td>{escape(run.name)}</td>"]
        for name in names:
            beside = [
                other[name]
                for other, dataset in zip(results, datasets, strict=True)
                if name in other and dataset == run.config["dataset"]
            ]
            best = min if name.partition("@")[0] in smaller_metrics else max
            marked = len(beside) > 1 and name in result and result[name] == best(beside)
            value = f"{result[name]:.4f}" if name in result else "–"
            cells.append(f'<td class="number{" best" if marked else ""}">{value}</td>')
        rows.append("".join(cells))
    head = "<th>Run</th>" + "".join(f'<th class="number">{escape(name)}</th>' for name in names)
    return _rows(caption, head, rows)


def _compared(comparison: dict[str, Any]) -> str:
    """The tables of `compare`, one for each way in which histories are ranked."""
    parts = []
    for history, rows in comparison["tables"].items():
        names, body = rows_of(rows)
        if not names:
            continue
        cells = [
            f"<td>{escape(label)}</td>"
            + "".join(f'<td class="number{" best" if best else ""}">{v}</td>' for v, best in row)
            for label, row in body
        ]
        head = "<th>Model</th>" + "".join(f'<th class="number">{escape(n)}</th>' for n in names)
        caption = f"{comparison['dataset']}, models compared: test, history {history}"
        parts.append(_rows(caption, head, cells))
    note = (
        "Means over seeds ± standard deviation; the best are marked. p: paired t-test over users "
        f"against the best on test {comparison['valid_metric']}; marked where it does not tell "
        "them apart (p ≥ 0.05)."
    )
    return "\n".join([*parts, _note(note)]) if parts else ""


def _differences(runs: list[RecordedRun]) -> str:
    """Tabulate the keys that all runs have and whose values differ."""
    keys = [key for key in runs[0].config if all(key in run.config for run in runs)]
    table = [["Run", *(run.name for run in runs)]]
    for key in (key for key in keys if key not in _KNOWN):
        values = [str(run.config[key]) for run in runs]
        if len(set(values)) > 1:
            table.append([key, *values])
    if len(table) == 1:
        return ""
    if len(table) <= len(runs):  # the longer side goes down the page
        table = list(zip(*table, strict=True))
    return _table("What differs", table[0], table[1:])


def _versions(runs: list[RecordedRun]) -> Iterable[str]:
    by_versions: dict[str, list[str]] = {}
    for run in runs:
        versions = ", ".join(f"{k} {v}" for k, v in run.result.get("versions", {}).items())
        by_versions.setdefault(versions, []).append(run.name)
    for versions, names in by_versions.items():
        if versions:
            of = f" of {', '.join(names)}" if len(by_versions) > 1 else ""
            yield _note(f"Versions{of}: {versions}.")


# A run --------------------------------------------------------------------------------------------


def _section(run: RecordedRun, look: bool, config_dict: dict[str, Any] | None) -> str:
    parts = [f"<h2>{escape(run.name)}</h2>"]
    for title, charts in (("Training", loss_charts(run)), ("Codes", code_charts(run))):
        if any(charts):
            parts += [f"<h3>{title}</h3>", f'<div class="charts">{"".join(charts)}</div>']
    if len(parts) > 1:
        parts.append(_note(_STAGES))
    else:
        parts.append(_note("No epochs are recorded."))
    if look:
        found = rank(run.directory, config_dict)
        left_out = isinstance(found, str)
        parts += [_note(f"No recommendations: {found}.")] if left_out else _recommendations(found)
    return "\n".join(parts) + "\n"


def _recommendations(rankings: Rankings) -> Iterable[str]:
    users, tested = len(rankings.place), rankings.tested
    sampled = "all" if users == tested else f"a sample of {users:,} of the"
    yield "<h3>For whom it is right</h3>"
    if rankings.changed:
        yield _note(f"Measured on other data than the test: {escape(rankings.changed)}.")
    yield '<div class="charts">'
    for name, values in (
        ("how often the test item occurs in training", rankings.popularity),
        ("length of the history, items", rankings.length),
    ):
        groups = [
            (f"{label} ({count:,})", bars) for label, count, bars in by_bins(rankings, values)
        ]
        yield bar_chart(f"Test metrics by {name} (test users)", groups)
    yield "</div>"
    yield _note(
        f"Of {sampled} {tested:,} test users, in bins of about equal size; "
        "thin lines are 95 % intervals of the means."
    )
    for what, groups in (
        ("how often they occur in training", by_frequency(rankings)),
        ("when they first occur in training", by_age(rankings)),
    ):
        if groups:
            yield _shown(f"Items by {what}: shown and hit", groups, rankings.k)
    yield "<h3>Examples</h3>"
    yield '<div class="users">'
    yield from (_example(example, rankings.k) for example in examples(rankings))
    yield "</div>"
    yield _note("Test users drawn at random, the first two among those with a hit.")


def _shown(caption: str, groups: list[Group], k: int) -> str:
    catalogue = sum(group.items for group in groups)
    head = ("Items", "of all", f"Of the top {k}", "Test items", f"Recall@{k}")
    rows = [
        [
            group.name,
            f"{group.items / catalogue:.1%}",
            f"{group.shown:.1%}",
            f"{group.tested:,}",
            f"{group.recall:.4f}" if group.tested else "",
        ]
        for group in groups
    ]
    return _table(caption, head, rows)


def _example(example: Example, k: int) -> str:
    history = "".join(f"<li>{escape(name)}</li>" for name in example.history)
    recommended = "".join(
        f'<li class="best">{escape(name)} ✓</li>'
        if place == example.hit
        else f"<li>{escape(name)}</li>"
        for place, name in enumerate(example.recommended)
    )
    where = f"not in the top {k}" if example.hit is None else f"hit at place {example.hit + 1}"
    return (
        f'<div class="user"><div><h4>Last of the history</h4><ol>{history}</ol></div>'
        f"<div><h4>Top {k}</h4><ol>{recommended}</ol></div>"
        f"<p>Then: <b>{escape(example.target)}</b> ({where})</p></div>"
    )


# HTML ---------------------------------------------------------------------------------------------


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return _rows(
        caption,
        "".join(f"<th>{escape(cell)}</th>" for cell in head),
        ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows],
    )


def _rows(caption: str, head: str, rows: Iterable[str]) -> str:
    body = "".join(f"<tr>{row}</tr>\n" for row in rows)
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'
