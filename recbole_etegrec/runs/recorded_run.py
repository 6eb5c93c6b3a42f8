"""What a run has written into its directory so far, finished or not."""

from typing import Any, NamedTuple

from recbole_etegrec.config.values import check_values
from recbole_etegrec.storage.records import damaged
from recbole_etegrec.storage.run_directory import RunDirectory


class RecordedRun(NamedTuple):
    """The records of a run; its model is not loaded.

    Attributes:
        name: the name of its directory.
        config: the run's keys.
        result: the content of ``result.json``; empty while the run is not finished.
        records: the lines of ``metrics.jsonl``.
    """

    name: str
    directory: RunDirectory
    config: dict[str, Any]
    result: dict[str, Any]
    records: list[dict[str, Any]]


def read_run(path: str) -> RecordedRun:
    """Read a run directory; the run may still be going on.

    Raises:
        UserError: it is not the directory of a run, or a file in it is damaged.
    """
    directory = RunDirectory(path)
    config, result = directory.read_config(), directory.read_result()
    missing = {"seed", "valid_metric"} - config.keys()
    if missing:
        raise damaged(directory.config, KeyError(f"no {', '.join(sorted(missing))}"))
    check_values(config, config["model"])
    return RecordedRun(directory.path.name, directory, config, result, directory.read_metrics())
