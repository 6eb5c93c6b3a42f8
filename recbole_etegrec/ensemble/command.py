"""The command: which runs are joined, those that are named and those that are trained for it."""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_etegrec.compare.command import compare, visible_gpus
from recbole_etegrec.compare.plan import make_plan as plan_runs
from recbole_etegrec.config.values import DEFAULT_MODEL, parse_value
from recbole_etegrec.ensemble.join import MEMBERS, join, make_plan, refuse_taken
from recbole_etegrec.errors import TrainingError, UserError
from recbole_etegrec.storage.run_directory import RunDirectory


def ensemble(run_dirs: Sequence[str], values: Mapping[str, str]) -> str:
    """Join runs to one directory, after training those of ``seeds`` that are missing there.

    Args:
        run_dirs: of finished runs.
        values: ``out``; ``weights``; ``seeds`` and ``jobs``, with which all others are the keys of
            the runs to be trained; without, they override keys of the ensemble's config.

    Returns:
        What it has come to, as a text.

    Raises:
        UserError: anything the user can mend.
        TrainingError: a run has failed.
        Interrupted: a signal came while runs were trained; the same command goes on.
    """
    values = dict(values)
    if "out" not in values:
        raise UserError("ensemble: expected --out=DIR (see --help)")
    out, weights = Path(values.pop("out")).absolute(), _weights(values.pop("weights", None))
    paths: list[str | Path] = list(run_dirs)
    for path in paths:  # a typo costs no training
        RunDirectory(path).read_config()
    with _held(out):
        if "seeds" in values:
            paths += _trained(values, out / MEMBERS)
            values = {}
        elif "jobs" in values:
            raise UserError("jobs: is for runs to be trained: give --seeds")
        chosen = {key: parse_value(key, value) for key, value in values.items()}
        return join(make_plan(paths, chosen, weights), out)


@contextmanager
def _held(out: Path):
    """Hold the directory of an ensemble; it is made where there is none.

    Raises:
        UserError: it has other files, another process holds it, or it cannot be written.
    """
    refuse_taken(out)
    with RunDirectory(out).held():
        yield


def _weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        weights = [float(value) for value in text.strip("[]").split(",")]
    except ValueError:
        weights = []
    if not any(weights) or not all(0 <= weight < float("inf") for weight in weights):
        raise UserError(f"weights ({text}): must be numbers of at least 0, such as 1,1,0.5")
    return weights


def _trained(values: dict[str, Any], out: Path) -> list[Path]:
    """Train what is missing, as a comparison of one model with itself; returns the runs."""
    model = values.pop("model", None) or DEFAULT_MODEL
    values |= {"models": model, "out": str(out)}
    planned = plan_runs({**values, "jobs": values.get("jobs", "1")})
    if "jobs" not in values:
        gpus = len(visible_gpus()) if planned.runs[0].config["use_gpu"] else 0
        values["jobs"] = str(max(min(gpus, len(planned.runs)), 1))
    _, failed = compare(values)
    if failed:
        raise TrainingError(
            f"{len(failed)} of the runs failed: {', '.join(failed[:5])}; see above, and "
            f"{out / failed[0] / 'run.log'}"
        )
    return [run.path for run in planned.runs]
