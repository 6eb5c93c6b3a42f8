"""Files in a run's directory with what a comparison measures beyond `result.json`."""

from pathlib import Path
from typing import Any

from recbole_etegrec.storage.records import NUMBER
from recbole_etegrec.storage.run_directory import RunDirectory

MEASURES = "measures.json"
_SHAPE = {
    "error?": str,
    "test_result?": {"*": {"*": NUMBER}},
    "memory_gib?": NUMBER,
    "parameters?": int,
    "machine?": str,
    "pairs?": int,
    "digest?": str,
    "dataset?": {"*": int},
}


def per_user_file(run_dir: Path, history: str) -> Path:
    """The file with each user's validation metric on the test; `history`: kept or excluded."""
    return run_dir / f"per_user_{history}.npz"


def read_measures(run_dir: Path) -> dict[str, Any]:
    """Read ``memory_gib``, ``parameters``, tested ``pairs``, their ``digest``, ``machine``, counts
    of the ``dataset``, and a ``test_result`` for each history; or an ``error``.

    Before a run has begun there is only an empty ``test_result``.
    """
    return {"test_result": {}, **RunDirectory(run_dir).read_json(MEASURES, _SHAPE)}


def write_measures(run_dir: Path, measures: dict[str, Any]) -> None:
    """Write what `read_measures` gives back; the directory is made where there is none."""
    run_dir.mkdir(parents=True, exist_ok=True)
    RunDirectory(run_dir).write_json(MEASURES, measures)


def write_error(run_dir: Path, error: str) -> None:
    """Note, in one line, why a run has failed."""
    write_measures(run_dir, {**read_measures(run_dir), "error": " ".join(error.split())})


def is_finished(run_dir: Path, histories: list[str]) -> bool:
    """Whether a run has its result, and has been tested in all these ways."""
    measures = read_measures(run_dir)
    measured = all(history in measures["test_result"] for history in histories)
    return RunDirectory(run_dir).result.exists() and measured and "error" not in measures
