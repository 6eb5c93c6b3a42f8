"""The directory of one run: what it holds, written so that no reader ever sees half a file."""

import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from recbole_etegrec.errors import UserError

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_handlers: list[logging.Handler] = []


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

    def write_yaml(self, name: str, value: Any) -> None:
        """Write `value` as YAML to the file `name`, keys in their given order."""
        replace_text(self.path / name, yaml.safe_dump(value, sort_keys=False))

    def drop_checkpoints(self) -> None:
        """Delete what only a run that is to go on needs."""
        for checkpoint in (self.last, self.previous):
            shutil.rmtree(checkpoint, ignore_errors=True)

    def read_yaml(self, name: str) -> Any:
        """The content of the YAML file `name`.

        Raises:
            UserError: there is no such file, or no mapping in it.
        """
        path = self.path / name
        if not path.is_file():
            raise UserError(f"run_dir {self.path}: no {name}; is it the directory of a run?")
        value = yaml.safe_load(path.read_text("utf-8"))
        if not isinstance(value, dict):
            raise UserError(f"run_dir {self.path}: {name} holds no 'key: value' lines")
        return value

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Add `record` as one line to metrics.jsonl."""
        with self.metrics.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(record) + "\n")

    def keep_metrics(self, count: int) -> None:
        """Cut metrics.jsonl after its first `count` lines."""
        lines = self.metrics.read_text("utf-8").splitlines(keepends=True)
        replace_text(self.metrics, "".join(lines[:count]))


def default_path(model: str, dataset: str) -> Path:
    """A path ``saved/<model>-<dataset>-<time>`` that does not exist yet."""
    name = f"saved/{model}-{dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    paths = (Path(name if n == 1 else f"{name}-{n}") for n in count(1))
    return next(path for path in paths if not path.exists())


@contextmanager
def atomic_directory(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Fill a directory beside `path`; it takes the place of `path` when the block succeeds.

    What was at `path` stays until then, and stays for good if the block raises.

    Args:
        keep: where what was at `path` goes, in place of what is there; without it, it is deleted.
    """
    fresh = path.with_name(f".{path.name}.new")
    former = keep or path.with_name(f".{path.name}.old")
    if keep is None and former.exists() and not path.exists():
        os.replace(former, path)  # an earlier process died between the two renames below
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        yield fresh
    except BaseException:
        shutil.rmtree(fresh)
        raise
    for file in filter(Path.is_file, fresh.rglob("*")):
        as_readable_as_its_folder(file)
    if path.exists():
        shutil.rmtree(former, ignore_errors=True)
        os.replace(path, former)
    os.replace(fresh, path)
    if keep is None:
        shutil.rmtree(former, ignore_errors=True)


def as_readable_as_its_folder(path: Path) -> None:
    """Let those read a file who may read its folder: safetensors leaves it to its owner alone."""
    path.chmod(path.parent.stat().st_mode & 0o666)


def replace_text(path: Path, text: str) -> None:
    """Write a file in one go: a reader sees what it held before, or all of `text`."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


class _PlainFormatter(logging.Formatter):
    """Without the colours that RecBole writes into its messages."""

    def format(self, record: logging.LogRecord) -> str:
        return _COLOURS.sub("", super().format(record))


def start_logging(run_dir: RunDirectory | None, level: str | None = "INFO") -> None:
    """Log to stderr and to the run's log, in place of an earlier run's handlers.

    Without a `run_dir`, as on all processes but the main one, only errors are logged.
    `level` is the name of a level, RecBole's key `state`; what it does not know reads as INFO.
    """
    root = logging.getLogger()
    while _handlers:
        handler = _handlers.pop()
        root.removeHandler(handler)
        handler.close()
    formatter = _PlainFormatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    _handlers.append(logging.StreamHandler(sys.stderr))
    if run_dir is not None:
        _handlers.append(logging.FileHandler(run_dir.log))
    for handler in _handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    number = logging.getLevelName("ERROR" if run_dir is None else str(level).upper())
    root.setLevel(number if isinstance(number, int) else logging.INFO)
