"""`recbole-etegrec recommend` and `explain`: a run's model for users of its dataset or others."""

import hashlib
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from accelerate import PartialState
from tqdm import tqdm

from recbole_etegrec.config import Config, is_ours
from recbole_etegrec.config.models import check_own
from recbole_etegrec.errors import Interrupted, UserError, nearest
from recbole_etegrec.inference.catalogue import Catalogue, cut
from recbole_etegrec.inference.explain import explain
from recbole_etegrec.inference.export import load_exported
from recbole_etegrec.inference.histories import (
    SPLITS,
    UserHistories,
    given_histories,
    split_histories,
    whole_histories,
)
from recbole_etegrec.inference.output import PartedFile, Row
from recbole_etegrec.inference.recbole_model import RecBoleModel
from recbole_etegrec.inference.recommend import item_ids, named, rank
from recbole_etegrec.model.protocol import RankingModel
from recbole_etegrec.runs.load import load_run
from recbole_etegrec.storage.digests import file_digest
from recbole_etegrec.storage.printable import one_line
from recbole_etegrec.storage.run_directory import RunDirectory

_WHOSE = ("users", "users-file", "all", "history")
_NAMES = 65536  # whose digest is made at once
_BATCHES = 4  # of a part: their histories are sorted by length, so that batches hold less padding


class LoadedRun(NamedTuple):
    """A trained model and what it was trained on.

    Attributes:
        directory: of the run, or of an exported model.
        data: the dataset, and its loaders (train, valid, test); an exported model has none.
    """

    directory: RunDirectory
    config: Config | dict[str, Any]
    model: RankingModel
    catalogue: Catalogue
    data: tuple

    @property
    def checksums(self) -> Path:
        """What tells the model's weights from others."""
        return (self.directory.best if self.data else self.directory.path) / "checksums.json"

    @property
    def exclude(self) -> bool:
        """Whether items of a history leave its ranking."""
        return self.model.exclude_history

    def histories(self, split: str | None) -> UserHistories:
        """Make the histories of all users: whole ones, or those before a split's held-out items."""
        if not self.data:
            raise UserError(
                f"{self.directory.path}: an exported model knows no users: give --history=ITEM,ITEM"
            )
        dataset, *loaders = self.data
        if isinstance(self.model, RecBoleModel):
            return self.model.histories(dataset, loaders, split, self.exclude)
        if split is None:
            return whole_histories(self.model, dataset, self.exclude)
        return split_histories(loaders, split, self.exclude)

    def given(self, text: str) -> UserHistories:
        """Make the history of an unnamed user from item tokens separated by commas."""
        known = item_ids(self.catalogue, [_names(text)])
        if isinstance(self.model, RecBoleModel):
            return UserHistories(np.array([""]), self.model.given(known, self.exclude))
        return UserHistories(np.array([""]), given_histories(self.model, known, self.exclude))


def open_run(
    directory: str, values: dict[str, str], *, recbole: bool = False, exported: bool = False
) -> LoadedRun:
    """Load whatever ranks: a finished run, or an exported model.

    Args:
        values: override keys of a run's config, and an exported model has none to be overridden;
            ``exclude-history`` stands for ``exclude_history``.
        recbole: whether it may be a run of a model of RecBole, which has no codes to show.
        exported: whether it may be an exported model.

    Raises:
        UserError: anything the user can mend.
    """
    run = RunDirectory(directory)
    if exported and not run.config.is_file() and (run.path / "config.json").is_file():
        return _open_exported(run, values)
    kept = run.read_config()
    if not recbole:
        check_own(kept, run.path)
    run.refuse_unfinished()
    if "exclude-history" in values:
        values["exclude_history"] = values.pop("exclude-history")
    config, model, *data = load_run(directory, values)
    model = model if is_ours(config) else RecBoleModel(model, config)
    return LoadedRun(run, config, model, Catalogue.from_dataset(data[0]), tuple(data))


def _open_exported(directory: RunDirectory, values: dict[str, str]) -> LoadedRun:
    given = values.pop("exclude-history", None)
    if values:
        raise UserError(f"{next(iter(values))}: an exported model takes no keys of a run")
    model, catalogue = load_exported(directory.path)
    if given is not None:
        model.exclude_history = given.lower() != "false"
    config = {"dataset": str(directory.path), "eval_batch_size": 1, "show_progress": False}
    return LoadedRun(directory, config, model, catalogue, ())


def recommend_command(run_dir: str, values: dict[str, str]) -> Iterator[str]:
    """Rank for users and write a file, or make a table; yields the text to print.

    Args:
        values: the arguments by their names; those that are not the command's override keys of
            the run's config.

    Raises:
        UserError: the arguments or the run are wrong, or none of the users is known.
        Interrupted: Ctrl-C was pressed; with a file, the same command goes on.
    """
    whose = {key: values.pop(key) for key in _WHOSE if key in values}
    if len(whose) != 1:
        raise UserError("recommend: give one of --users, --users-file, --all and --history")
    ((kind, text),) = whose.items()
    asked = _names(text) if kind == "users" else _lines(text) if kind == "users-file" else None
    k, split, out = _count("k", values, 10), values.pop("split", None), values.pop("out", None)
    if split is not None and (split not in SPLITS or kind == "history"):
        raise UserError(f"split ({split}): {' or '.join(SPLITS)}, for users of the dataset")
    file = None if out is None else PartedFile(out)
    run = open_run(run_dir, values, recbole=True, exported=True)
    users, histories = run.given(text) if kind == "history" else run.histories(split)
    rows = np.arange(len(users)) if asked is None else _rows(users, asked, run, split)
    parts = _Parts(run, UserHistories(users, histories), rows, k)
    if file is None:
        yield from _table(parts)
        return
    arguments = {"k": k, "split": split, "history": whose.get("history"), "config": values}
    with _opened(file, {**parts.identity(), **arguments}):
        _write(parts, file)
    if PartialState().is_main_process:
        yield f"{file.path}: {len(rows)} users, {k} items each at most\n"


def explain_command(run_dir: str, values: dict[str, str]) -> str:
    """Explain an item, or the first recommendation, code by code, as text.

    The arguments are those of `recommend_command`.

    Raises:
        UserError: anything the user can mend.
    """
    whose = {key: values.pop(key) for key in ("user", "history") if key in values}
    if len(whose) != 1:
        raise UserError("explain: give one of --user and --history")
    ((kind, text),) = whose.items()
    item, alternatives = values.pop("item", None), _count("alternatives", values, 3)
    run = open_run(run_dir, values)
    users, histories = run.given(text) if kind == "history" else run.histories(None)
    rows = _rows(users, [text], run, None) if kind == "user" else np.arange(1)
    tokens, model = run.catalogue.tokens, run.model
    history = [tokens[item] for item in histories.batch(rows)[0][model.fields.history][0].tolist()]
    if item is None:
        item = tokens[rank(model, histories, rows, 1, 1).items[0, 0]]
    return str(explain(model, run.catalogue, history, item, alternatives))


def _count(key: str, values: dict[str, str], default: int) -> int:
    text = values.pop(key, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{key} ({text}): must be a whole number, at least 1")
    return int(text)


def _names(text: str) -> list[str]:
    return list(filter(None, map(str.strip, text.split(","))))


def _lines(path: str) -> list[str]:
    try:
        return list(filter(None, map(str.strip, Path(path).read_text("utf-8").splitlines())))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise UserError(f"users-file {path}: {reason}") from error


def _rows(users: np.ndarray, asked: list[str], run: LoadedRun, split: str | None) -> np.ndarray:
    """Find the rows of the users asked for, in their order; unknown users are listed on stderr.

    Raises:
        UserError: none of them is known.
    """
    rows: dict[str, list[int]] = {}
    for row, user in enumerate(users.tolist()):
        rows.setdefault(user, []).append(row)
    asked = list(dict.fromkeys(asked))
    unknown = [user for user in asked if user not in rows]
    where = f"in {run.config['dataset']}" if split is None else f"among the {split} users"
    if len(unknown) == len(asked):
        hint = nearest(unknown[0], rows) if len(unknown) == 1 else ""
        raise UserError(f"users: none is {where}: {', '.join(unknown)}{hint}")
    if unknown:
        sys.stderr.write(one_line(f"left out, not {where}: {', '.join(unknown)}") + "\n")
    return np.array([row for user in asked if user in rows for row in rows[user]])


def _digest(names: Iterable[str]) -> str:
    """A digest of names, one in a line, of which some at a time are in memory."""
    digest, names, first = hashlib.sha256(), iter(names), True
    while part := list(islice(names, _NAMES)):
        digest.update(("" if first else "\n").encode() + "\n".join(part).encode())
        first = False
    return digest.hexdigest()


class _Parts:
    """Ranks for some rows, a part of them at a time."""

    def __init__(self, run: LoadedRun, source: UserHistories, rows: np.ndarray, k: int):
        self.run, self.source, self.k = run, source, k
        size = run.config["eval_batch_size"] * _BATCHES
        self.count = len(rows)
        self.rows = [rows[start : start + size] for start in range(0, len(rows), size)]

    @property
    def users(self) -> Iterator[str]:
        """Their tokens, row by row."""
        return (user for rows in self.rows for user in self.source.users[rows].tolist())

    def identity(self) -> dict[str, Any]:
        """Describe the model, users and part size, to tell these parts from others."""
        model, histories = self.run.model, self.source.histories
        return {
            "run_dir": str(self.run.directory.path),
            "model": file_digest(self.run.checksums),
            "items": _digest(self.run.catalogue.tokens),  # some may have been added since
            "items gone": model.left_out.tolist(),
            "histories": histories.digest(np.concatenate(self.rows or [np.arange(0)])),
            "users": _digest(self.users),
            "eval_batch_size": self.run.config["eval_batch_size"],
        }

    def rank(self, number: int) -> list[Row]:
        """Rank one part; returns the rows of its rankings."""
        rows = self.rows[number]
        size = self.run.config["eval_batch_size"]
        ranking = rank(self.run.model, self.source.histories, rows, self.k, size)
        return [
            (user, place, *recommendation)
            for user, found in zip(
                self.source.users[rows], named(self.run.catalogue, ranking), strict=True
            )
            for place, recommendation in enumerate(found, start=1)
        ]


@contextmanager
def _opened(file: PartedFile, order: dict[str, Any]) -> Iterator[None]:
    """Begin or take up a file, which one of several processes holds for all of them."""
    state = PartialState()
    with file.open(order) if state.is_main_process else nullcontext():
        state.wait_for_everyone()
        yield


def _write(parts: _Parts, file: PartedFile) -> None:
    users, show = parts.count, parts.run.config["show_progress"]
    state, done = PartialState(), 0
    show = show and state.is_main_process
    try:
        with tqdm(desc="Recommend", total=users, unit="user", disable=not show, ncols=100) as bar:
            for number, rows in enumerate(parts.rows):
                own = number % state.num_processes == state.process_index
                if own and not file.has(number):
                    file.write(number, parts.rank(number))
                done += len(rows)
                bar.update(len(rows))
        state.wait_for_everyone()
        if state.is_main_process:
            file.join(len(parts.rows))
    except KeyboardInterrupt as error:
        stopped = f"{file.path}: stopped after {done} of {users} users; the same command goes on"
        raise Interrupted(signal.SIGINT, stopped) from error


def _table(parts: _Parts) -> Iterator[str]:
    """Lines of text, a part at a time."""
    users = max(4, *map(len, parts.users))
    items = max(4, *map(len, parts.run.catalogue.tokens))
    yield f"{'user':{users}}  rank  {'item':{items}}   score  title\n"
    for number in range(len(parts.rows)):
        for user, place, item, title, value in parts.rank(number):
            line = f"{user:{users}}{place:6}  {item:{items}}{value:8.3f}  {cut(title or '')}"
            yield f"{line.rstrip()}\n"
