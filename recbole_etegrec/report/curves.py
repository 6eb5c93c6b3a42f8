"""The curves of one run: what the lines of its ``metrics.jsonl`` say, epoch by epoch.

Epochs are numbered from 1, as in the log; their records count from 0. A point stands in the middle
of its epoch; the codes that end pretraining stand at its end.
"""

from recbole_etegrec.losses import OBJECTIVES
from recbole_etegrec.report.charts import Axis, Band, Series, line_chart, nice_ticks
from recbole_etegrec.runs.recorded_run import RecordedRun

# Key of a record, title with its unit, whether it is a share.
_CODES = (
    ("usage", "Codes in use, share of a codebook", True),
    ("perplexity", "Perplexity of the codes in use, codes", False),
    ("collision_rate", "Items whose semantic codes collide, share", True),
    ("changed", "Items with new codes, share", True),
    ("neighbours_kept", "Nearest neighbours kept, share", True),
    ("reconstruction", "Reconstruction error, mean square", False),
)
_PRETRAINING = "pretraining"


def epochs_of(run: RecordedRun) -> list[dict]:
    """The records of epochs over the training sequences."""
    return [r for r in run.records if "trains" in r and r["phase"] != _PRETRAINING]


def loss_charts(run: RecordedRun) -> list[str]:
    """The validation metric, the losses and the learning rate."""
    records = epochs_of(run)
    if not records:
        return []
    axis = Axis("epoch", _stages(records), _ticks(len(records)))
    charts = [_course(validation_title(run), [validation(run)._replace(name="")], axis)]
    for name, objective in OBJECTIVES.items():
        title = f"{objective.title}, {objective.unit}"
        charts.append(_course(title, _by_module(records, name), axis))
    return [*charts, _course("Learning rate", _by_module(records, "lr"), axis)]


def code_charts(run: RecordedRun) -> list[str]:
    """The health of the codes during pretraining and after each of the tokenizer's epochs."""
    pretraining = [record for record in run.records if record["phase"] == _PRETRAINING]
    moving = {record["phase"] for record in epochs_of(run) if record["trains"] != "recommender"}
    records = [record for record in epochs_of(run) if record["phase"] in moving]
    epochs, trained = max(len(pretraining), 1), max(len(records), 1)

    def place(record: dict) -> float:
        """Pretraining has many short epochs; they take as much room as what follows."""
        if record["phase"] == "codes":
            return 0.0
        middle = record["epoch"] + 0.5
        return (middle / epochs - 1) * trained if record["phase"] == _PRETRAINING else middle

    health = [record for record in run.records if "usage" in record]
    if not health:
        return []
    bands = [Band(-trained, 0, _PRETRAINING, _PRETRAINING)] if pretraining else []
    bands += _stages(records) if records else [Band(0, trained, "final")]
    ticks = [((tick / epochs - 1) * trained, str(tick)) for tick in _whole(0.8 * epochs, 3)]
    axis = Axis("epoch", bands, [*(ticks if pretraining else []), *_ticks(len(records))])
    charts = []
    for key, title, shares in _CODES:
        # Until pretraining ends there are no codes of the model that could change.
        known = [r for r in health if key in r and (key != "changed" or r in records)]
        found = [(place(record), record[key]) for record in known]
        series = [Series("", found)]
        if found and isinstance(found[0][1], list):
            series = [
                Series(f"level {level}", [(x, values[level]) for x, values in found])
                for level in range(len(found[0][1]))
            ]
        charts.append(_course(title, series, axis, shares))
    return charts


def comparison(runs: list[RecordedRun]) -> str:
    """Draw the validation metric of several runs in one chart, if they all use the same metric."""
    titles = {validation_title(run) for run in runs}
    series = [validation(run) for run in runs]
    epochs = max((point[0] for one in series for point in one.points), default=0) + 0.5
    if len(runs) < 2 or len(titles) > 1 or epochs < 1:
        return ""
    axis = Axis("epoch", [Band(0, epochs, "final")], _ticks(int(epochs)))
    return _course(titles.pop(), series, axis)


def validation(run: RecordedRun) -> Series:
    """The metric that chose the best model, by epoch."""
    key = run.config["valid_metric"].lower()
    results = [record for record in run.records if "valid_result" in record]
    points = [(record["epoch"] + 0.5, record["valid_result"][key]) for record in results]
    return Series(run.name, points)


def validation_title(run: RecordedRun) -> str:
    """Title of a chart of `validation`."""
    return f"Validation {run.config['valid_metric']}"


def _course(title: str, series: list[Series], axis: Axis, shares: bool = False) -> str:
    """Draw lines; nothing where no series has two points, for one tells no course."""
    if max((len(one.points) for one in series), default=0) < 2:
        return ""
    return line_chart(title, series, axis, shares)


def _by_module(records: list[dict], key: str) -> list[Series]:
    """Make a curve of `key` for each module that trains with it, named if there are two."""
    modules = ("recommender", "tokenizer", "both")
    series = [
        Series(
            name, [(r["epoch"] + 0.5, r[key]) for r in records if r["trains"] == name and key in r]
        )
        for name in modules
    ]
    series = [one for one in series if one.points]
    return series if len(series) > 1 else [one._replace(name="") for one in series]


def _stages(records: list[dict]) -> list[Band]:
    """Make a band for each epoch, shaded where codes move; the first of each phase has its name."""
    bands, named = [], set()
    moving = {record["phase"] for record in records if record["trains"] != "recommender"}
    for record in records:
        phase, epoch = record["phase"], record["epoch"]
        kind = record["trains"] if phase in moving else "final"
        name = "" if phase in named else phase.replace("_", " ")
        bands.append(Band(epoch, epoch + 1, kind, name))
        named.add(phase)
    return bands


def _ticks(epochs: int) -> list[tuple[float, str]]:
    return [(tick - 0.5, str(tick)) for tick in _whole(epochs, 4) if tick]


def _whole(last: float, count: int) -> list[int]:
    """Some round whole numbers from 0 to `last`."""
    if last < 1:
        return [0]
    return sorted({round(tick) for tick in nice_ticks(0, last, count)})
