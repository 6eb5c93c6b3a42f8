"""Keeps binary columns of a large dataset beside its text, and makes them where there are none.

Reading text, numbering tokens and sorting take minutes where there are a hundred million lines, and
give the same each time. So what comes of them is kept: a folder ``NAME.columns`` beside the
``.inter`` file (or in the cache, where that folder cannot be written) has one form for each choice
of filters. A start compares the text with the one that the columns were made of, by size and time
of change, else by its digest, and maps the files into memory; no interaction is copied.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from recbole_etegrec.config import Config
from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.columns import (
    FILTERS,
    INTERACTIONS,
    ITEMS,
    NOTE,
    USERS,
    VERSION,
    Columns,
    read_columns,
)
from recbole_etegrec.data.dataset_files import check_dataset_files
from recbole_etegrec.storage.atomic import atomic_directory, replace_text
from recbole_etegrec.storage.digests import (
    bytes_digest,
    damaged_file,
    file_digest,
    write_checksums,
)

logger = logging.getLogger(__name__)

# What text is read for, where one of these is set.
_NOT_IN_COLUMNS = (
    "benchmark_filename",
    "unload_col",
    "unused_col",
    "additional_feat_suffix",
    "alias_of_user_id",
    "alias_of_item_id",
    "val_interval",
    "threshold",
    "normalize_field",
    "normalize_all",
    "discretization",
    "numerical_features",
    "preload_weight",
)


_whole: list[tuple[Path, list[int]]] = []  # folders that this process has found whole


def columns_of(config: Config, *, make: bool) -> Columns | None:
    """The columns of a dataset.

    None where its text is what is to be read: it is smaller than ``binary_from_mib``, or something
    is asked for that columns do not have, which is said.

    Args:
        make: whether they are made if there are none that are current; else nothing is written.

    Raises:
        UserError: the text is not what it should be.
    """
    path = AtomicFiles.of(config).path("inter")
    if config["benchmark_filename"] or not path.is_file() or not _is_large(config, path):
        return None
    if why := _unfit(config):
        logger.warning("%s is read as text at each start: %s", path, why)
        return None
    order = json.dumps(_order(config), sort_keys=True)
    places = [place / bytes_digest(order.encode())[:16] for place in _places(config, path)]
    for folder in places:
        if _is_current(folder, path, order, make):
            return read_columns(folder)
    if not make:
        logger.warning("%s is read as text: it has no current binary columns", path)
        return None
    return _made(config, path, next(place for place in places if _can_write(place)), order)


def _is_large(config: Config, path: Path) -> bool:
    least = config["binary_from_mib"]
    return least is not None and path.stat().st_size >= least * 2**20


def _unfit(config: Config) -> str:
    """Why columns will not do for a config; empty if they will."""
    files = AtomicFiles.of(config)
    fields = {config[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD")}
    loaded = {name: fields for name, fields in (config["load_col"] or {}).items() if fields}
    if find_spec("pyarrow") is None:
        return "binary columns need pyarrow: pip install 'recbole-etegrec[parquet]'"
    if set(loaded) != {"inter"} or loaded["inter"] == "*" or set(loaded["inter"]) != fields:
        return f"binary columns have {', '.join(sorted(fields))} alone, load_col asks for others"
    if len(files.separator) != 1:
        return f"field_separator ({files.separator!r}) is not one character"
    chosen = [key for key in _NOT_IN_COLUMNS if config[key]]
    return f"binary columns know no {', '.join(chosen)}" if chosen else ""


def _order(config: Config) -> dict[str, Any]:
    """What, besides the text, columns follow from."""
    keys = ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD", "field_separator", "encoding", *FILTERS)
    return {"version": VERSION, "name": config["dataset"], **{key: config[key] for key in keys}}


def _places(config: Config, path: Path) -> Iterator[Path]:
    """Folders in which the forms of a text may lie."""
    yield path.with_suffix(".columns")
    yield Path(config["embedding_cache"]) / bytes_digest(str(path.resolve()).encode())[:16]


def _can_write(folder: Path) -> bool:
    """Whether a folder can be made; that of the cache is taken as it comes."""
    beside = next(place for place in folder.parents if place.exists())
    return folder.parent.suffix != ".columns" or os.access(beside, os.W_OK)


def _is_current(folder: Path, path: Path, order: str, note_it: bool = True) -> bool:
    """Whether columns are whole, and of the text as it is now.

    Args:
        note_it: whether it may be noted where that took reading the text.
    """
    note = folder / NOTE
    try:
        known = json.loads(note.read_text("utf-8"))
        if known["order"] != order:
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if _damaged(folder):
        return False
    if known["stamp"] == _stamp(path):
        return True
    if known["digest"] != file_digest(path):
        return False
    with suppress(OSError):  # it is read through again at the next start
        if note_it:
            replace_text(note, json.dumps({**known, "stamp": _stamp(path)}))
    return True


def _damaged(folder: Path) -> bool:
    """Whether a file of columns is not as it was written; a process looks once."""
    interactions = folder / "data" / INTERACTIONS
    key = folder, _stamp(interactions) if interactions.is_file() else []
    if key in _whole:
        return False
    if damaged := damaged_file(folder / "data", INTERACTIONS, USERS, ITEMS):
        logger.warning("%s is damaged, the columns are made anew", folder / "data" / damaged)
        return True
    _whole.append(key)
    return False


def _stamp(path: Path) -> list[int]:
    """What tells that a file has not been written since."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _made(config: Config, path: Path, folder: Path, order: str) -> Columns | None:
    """Make columns, of several processes by one; None where times are no whole numbers."""
    from recbole_etegrec.data.text_to_columns import FractionError, write_columns

    with _lock(folder):
        if not _is_current(folder, path, order):
            logger.info("%s: made into binary columns in %s, once", path, folder)
            stamp, digest = _stamp(path), file_digest(path)
            check_dataset_files(config)
            try:
                with atomic_directory(folder) as fresh:
                    (fresh / "data").mkdir()
                    found = write_columns(config, path, fresh / "data")
                    write_checksums(fresh / "data")
                    note = {"order": order, "stamp": stamp, "digest": digest, **found}
                    (fresh / NOTE).write_text(json.dumps(note), "utf-8")
            except FractionError as error:
                logger.warning("%s is read as text at each start: %s", path, error)
                return None
    return read_columns(folder)


def _lock(folder: Path) -> AbstractContextManager:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(folder.with_suffix(".lock"))
