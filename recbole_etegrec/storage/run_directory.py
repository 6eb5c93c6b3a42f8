"""The directory of one run and the files in it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.atomic import naming, replace_text
from recbole_etegrec.storage.lock import held_folder, refuse_held, strangers
from recbole_etegrec.storage.records import NUMBER, read_json, read_lines, read_yaml

_MODEL_FILES = (".safetensors", ".json")
_NUMBERS = {"*": NUMBER}
_CONFIG = {"model": str, "dataset": str}
_RESULT = {
    "model": str,
    "dataset": str,
    "best_valid_score": NUMBER,
    "best_valid_result": (_NUMBERS, None),
    "test_result": _NUMBERS,
    "epochs": int,
    "seconds": NUMBER,
    "versions": {"*": (str, None)},
}
_CODES = {"phase": str, "usage?": [NUMBER], "perplexity?": [NUMBER], "*": NUMBER}
_EPOCH = {**_CODES, "epoch": int, "trains": str, "lr": NUMBER, "valid_result?": _NUMBERS}


class RunDirectory:
    """Paths and files of one run. The constructor names a run, `create` starts one."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.best = self.path / "best"
        self.last = self.path / "last"
        self.previous = self.path / "previous"
        self.before = self.path / "before"
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
        run_dir.refuse_ended()
        with run_dir._written():
            run_dir.path.mkdir(parents=True, exist_ok=True)
            run_dir.metrics.write_text("")
            shutil.rmtree(run_dir.best, ignore_errors=True)
            run_dir.added_items.unlink(missing_ok=True)
        return run_dir

    def refuse_ended(self) -> None:
        """Refuse a directory that holds a run to be used or to go on with.

        Raises:
            UserError: it holds a finished or a stopped run.
        """
        with self._written():
            if self.result.exists():
                raise UserError(
                    f"run_dir {self.path}: holds a finished run; choose another run_dir"
                )
            if self.last.exists() or self.previous.exists():
                raise UserError(
                    f"run_dir {self.path}: holds a stopped run; --resume it or choose another"
                )

    def refuse_finished(self) -> None:
        """Refuse to go on with a run that has ended.

        Raises:
            UserError: it has.
        """
        if self.result.exists():
            raise UserError(f"resume: the run in {self.path} has ended; see its result.json")

    def refuse_unfinished(self) -> None:
        """Refuse a run that has no model to be used.

        Raises:
            UserError: it is not finished, or its model was not kept.
        """
        if self.best.is_dir():
            return
        if self.result.exists():
            raise UserError(f"run_dir {self.path}: the run has no best/, its model was not kept")
        raise UserError(
            f"run_dir {self.path}: not finished, there is no model in it yet (no best/): go on "
            f"with --resume={self.path}"
        )

    def refuse_taken(self) -> None:
        """Refuse a directory that no run may begin in, whatever its configuration.

        Raises:
            UserError: it holds a run that has ended, is held by another process, or has files and
                no config.yaml, so that they are no run's.
        """
        self.refuse_ended()
        with self._written():
            if not self.config.exists() and (found := strangers(self.path)):
                raise UserError(
                    f"run_dir {self.path}: holds files that are no run's ({', '.join(found[:5])}); "
                    "choose another run_dir"
                )
            # Of a run that is to be begun anew; a run writes these alone into it.
            if found := [name for name in strangers(self.best) if not name.endswith(_MODEL_FILES)]:
                raise UserError(
                    f"run_dir {self.path}: its best/ holds files that are no run's "
                    f"({', '.join(found[:5])}); choose another run_dir"
                )
        self.refuse_held()

    def refuse_held(self) -> None:
        """Refuse a directory that another process writes to.

        Raises:
            UserError: see above.
        """
        refuse_held(self.path, f"run_dir {self.path}")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from writing to the run; the directory is made where there is none.

        Raises:
            UserError: another process holds it, or it cannot be written.
        """
        with self._written():
            self.path.mkdir(parents=True, exist_ok=True)
        with held_folder(self.path, f"run_dir {self.path}"):
            yield

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"run_dir {self.path}: cannot be written ({reason})") from error

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
        for checkpoint in (self.last, self.previous, self.before):
            shutil.rmtree(checkpoint, ignore_errors=True)

    def read_config(self) -> dict[str, Any]:
        """The keys of the run.

        Raises:
            UserError: there is no config.yaml, or it is damaged.
        """
        if not self.config.is_file():
            raise UserError(
                f"run_dir {self.path}: no config.yaml; is it the directory of a run?{self._near()}"
            )
        return read_yaml(self.config, _CONFIG)

    def _near(self) -> str:
        """The hint that names a run above this directory, in it or beside it, if there is one.

        Of several it is the one with a name like this, else the newest.
        """
        parent = self.path.parent
        for folder, pattern in ((parent, ""), (self.path, "*/"), (parent, "*/")):
            runs = {file.parent: file for file in folder.glob(f"{pattern}config.yaml")}
            times = {run: file.stat().st_mtime for run, file in runs.items() if file.is_file()}
            alike = get_close_matches(self.path.name, [run.name for run in times], n=1)
            if times:
                run = max(times, key=lambda run: (run.name in alike, times[run], run))
                return f" A run near it is {run}"
        return ""

    def read_json(self, name: str, shape: Any = dict) -> dict[str, Any]:
        """What `write_json` wrote to the file `name`; empty where there is no such file.

        Raises:
            UserError: the file is damaged, or does not have the shape, as `records.py` has them.
        """
        path = self.path / name
        return read_json(path, shape) if path.exists() else {}

    def read_result(self) -> dict[str, Any]:
        """The content of result.json; empty while the run is not finished.

        Raises:
            UserError: the file is damaged.
        """
        return self.read_json(self.result.name, _RESULT)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; one that a running process is still writing is left out.

        Raises:
            UserError: the file is damaged.
        """
        return read_lines(self.metrics, (_EPOCH, _CODES)) if self.metrics.exists() else []

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add `record` as one line to metrics.jsonl."""
        with naming(self.metrics), self.metrics.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")

    def keep_metrics(self, count: int) -> None:
        """Cut metrics.jsonl after its first `count` lines."""
        lines = self.metrics.read_text("utf-8").splitlines(keepends=True)
        replace_text(self.metrics, "".join(lines[:count]))


def new_default(model: str, dataset: str) -> RunDirectory:
    """Make a directory ``saved/<model>-<dataset>-<time>``, another one for each that asks.

    Raises:
        UserError: it cannot be written.
    """
    name = f"saved/{model}-{dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in count(1):
        run_dir = RunDirectory(name if number == 1 else f"{name}-{number}")
        with run_dir._written():
            try:
                run_dir.path.mkdir(parents=True)
                return run_dir
            except FileExistsError:
                continue
