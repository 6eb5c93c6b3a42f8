"""The directory of one run and the files in it."""

import json
import shutil
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.atomic import replace_text


class RunDirectory:
    """Paths and files of one run. The constructor names a run, `create` starts one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.best = self.path / "best"
        self.last = self.path / "last"
        self.previous = self.path / "previous"
        self.added_items = self.path / "added_items.safetensors"
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.log = self.path / "run.log"

    @classmethod
    def create(cls, path: str | Path) -> "RunDirectory":
        """Make the directory, or take up one whose run ended before its first checkpoint.

        Raises:
            UserError: it cannot be written, or holds a finished or a stopped run.
        """
        run_dir = cls(path)
        if run_dir.result.exists():
            raise UserError(f"run_dir {run_dir.path}: holds a finished run; choose another run_dir")
        if run_dir.last.exists() or run_dir.previous.exists():
            raise UserError(
                f"run_dir {run_dir.path}: holds a stopped run; --resume it or choose another"
            )
        try:
            run_dir.path.mkdir(parents=True, exist_ok=True)
            run_dir.metrics.write_text("")
            shutil.rmtree(run_dir.best, ignore_errors=True)
            run_dir.added_items.unlink(missing_ok=True)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"run_dir {run_dir.path}: cannot be written ({reason})") from error
        return run_dir

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as JSON to the file `name`."""
        replace_text(self.path / name, json.dumps(value, indent=2) + "\n")

    def write_config(self, values: dict[str, Any]) -> None:
        """Write config.yaml, keys in their given order."""
        replace_text(self.config, yaml.safe_dump(values, sort_keys=False))

    def clear_leftovers(self) -> None:
        """Delete what a killed process has left half written, where no other is writing."""
        for path in self.path.glob(".*.new"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def drop_checkpoints(self) -> None:
        """Delete the checkpoints, which only resuming needs."""
        for checkpoint in (self.last, self.previous):
            shutil.rmtree(checkpoint, ignore_errors=True)

    def read_config(self) -> dict[str, Any]:
        """The keys of the run.

        Raises:
            UserError: there is no config.yaml, or it is damaged.
        """
        if not self.config.is_file():
            raise UserError(f"run_dir {self.path}: no config.yaml; is it the directory of a run?")
        try:
            values = yaml.safe_load(self.config.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise _damaged(self.config, error) from error
        if not isinstance(values, dict):
            raise UserError(f"run_dir {self.path}: config.yaml holds no 'key: value' lines")
        return values

    def read_json(self, name: str) -> dict[str, Any]:
        """What `write_json` wrote to the file `name`; empty where there is no such file.

        Raises:
            UserError: the file is damaged.
        """
        path = self.path / name
        return _parse_json(path, path.read_text("utf-8")) if path.is_file() else {}

    def read_result(self) -> dict[str, Any]:
        """The content of result.json; empty while the run is not finished.

        Raises:
            UserError: the file is damaged.
        """
        return self.read_json(self.result.name)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one that a running process is still writing is left out.

        Raises:
            UserError: the file is damaged.
        """
        if not self.metrics.is_file():
            return []
        lines = self.metrics.read_text("utf-8").splitlines(keepends=True)
        return [_parse_json(self.metrics, line) for line in lines if line.endswith("\n")]

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add `record` as one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")

    def keep_metrics(self, count: int) -> None:
        """Cut metrics.jsonl after its first `count` lines."""
        lines = self.metrics.read_text("utf-8").splitlines(keepends=True)
        replace_text(self.metrics, "".join(lines[:count]))


def _parse_json(path: Path, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise _damaged(path, error) from error
    return value


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: damaged ({' '.join(str(error).split())})")


def default_path(model: str, dataset: str) -> Path:
    """A path ``saved/<model>-<dataset>-<time>`` that does not exist yet."""
    name = f"saved/{model}-{dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    paths = (Path(name if n == 1 else f"{name}-{n}") for n in count(1))
    return next(path for path in paths if not path.exists())
