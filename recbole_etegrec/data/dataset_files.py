"""Checks that the atomic files of a dataset exist, are whole and hold what a run needs.

They are read before RecBole loads them, so that the message can name the line of a fault.
"""

import logging
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, NamedTuple

from recbole.data.dataset import Dataset

from recbole_etegrec.config import Config
from recbole_etegrec.config.datasets import datasets_in
from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.atomic_header import AtomicHeader, read_header
from recbole_etegrec.data.cells import Needs, read_cells
from recbole_etegrec.data.filled_histories import find_padding
from recbole_etegrec.data.item_file import read_texts
from recbole_etegrec.errors import UserError

logger = logging.getLogger(__name__)


class Fields(NamedTuple):
    """The fields of a config that mean something to a run."""

    user: str
    item: str
    time: str
    histories: str

    @classmethod
    def of(cls, config: Config) -> "Fields":
        """Those that a config names."""
        user, item = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        return cls(user, item, config["TIME_FIELD"], item + config["LIST_SUFFIX"])

    @property
    def needs(self) -> Needs:
        """What may not be missing."""
        return Needs(frozenset({self.user, self.item}), self.time)

    @property
    def types(self) -> dict[str, str]:
        """The type that each must have."""
        kinds = ("token", "token", "float", "token_seq")
        return dict(zip(self, kinds, strict=True))


def check_dataset_files(config: Config) -> None:
    """Read through the atomic files that RecBole will load.

    Raises:
        UserError: a file is missing or empty, its header is not ``field:type ...`` or lacks a
            field the run needs, a line has another number of columns than the header, or a cell
            that is loaded holds what its field cannot.
    """
    files, fields = AtomicFiles.of(config), Fields.of(config)
    load_col = config["load_col"]
    wanted = {fields.user, fields.item, *_named((load_col or {}).get("inter"))}
    if config["benchmark_filename"]:
        _check_parts(config, wanted - {fields.time, fields.histories}, files, fields)
    else:
        by_time = {fields.time} if config["eval_args"]["order"] == "TO" else set()
        check_atomic_file(files.path("inter"), wanted | by_time, files, config)
    if load_col is None:  # RecBole loads what there is
        others = {suffix: set() for suffix in ("user", "item") if files.path(suffix).is_file()}
    else:
        others = {k: _named(v) for k, v in load_col.items() if k != "inter" and v}
    for suffix, wanted in others.items():
        check_atomic_file(files.path(suffix), wanted, files, config)


def _named(columns: Any) -> set[str]:
    """The fields that an entry of `load_col` names; RecBole reads '*' as all there are."""
    return set() if columns in (None, "*") else set(columns)


def part_paths(config: Config) -> list[Path]:
    """The files of a pre-split dataset."""
    files = AtomicFiles.of(config)
    return [files.path(f"{part}.inter") for part in config["benchmark_filename"]]


def _check_parts(config: Config, wanted: set[str], files: AtomicFiles, fields: Fields) -> None:
    """Check pre-split files: all of them have times or none has, and the same for histories.

    Args:
        wanted: fields that each must have.
    """
    paths = part_paths(config)
    present = [set(check_atomic_file(path, wanted, files, config)) for path in paths]
    for field in sorted({fields.time, fields.histories} & set.union(*present)):
        for path, found in zip(paths, present, strict=True):
            if field not in found:
                raise UserError(f"{path}: missing field '{field}', which the other parts have")
    if fields.histories in present[0]:
        for path, what in find_padding(paths, files, fields.histories, config["seq_separator"]):
            raise UserError(f"{path}: {what}")


def repeated_user(config: Config) -> str:
    """Name a user with several lines in a held-out part of pre-split files, and the file."""
    files, field = AtomicFiles.of(config), config["USER_ID_FIELD"]
    for path in part_paths(config)[1:]:
        users = read_texts(path, files, [field])[field]
        if users.duplicated().any():
            return f"'{users[users.duplicated()].iloc[0]}' of {path.name}"
    return ""


def check_atomic_file(
    path: Path, wanted: Set[str], files: AtomicFiles, config: Config | None = None
) -> list[str]:
    """Read an atomic file through; returns the fields that it has.

    Args:
        wanted: the fields that it must have.
        files: of the dataset that it belongs to.
        config: of the run that loads the file; without one, cells of any content will do.

    Raises:
        UserError: as `check_dataset_files` says.
    """
    if not path.is_file():
        raise UserError(f"dataset '{files.name}': no file {path}{_found_instead(path)}")
    header = read_header(path, files.separator, files.encoding)
    fields = Fields.of(config) if config else None
    for what, found in header.faults(wanted, fields.types if fields else {}):
        raise UserError(f"{path}, line 1: {what}" + (f", not '{found[:80]}'" if found else ""))
    loaded = _loaded(config, path, header) if config else set()
    # A type of its own keeps a column from being looked at.
    types = {field: kind if field in loaded else "" for field, kind in header.types.items()}
    needs = Needs(fields.needs.ids & loaded, fields.time) if fields else Needs(frozenset(), "")

    def refuse(line: int, what: str, found: str, bearable: bool) -> None:
        if bearable:
            return
        cell = f", but '{found[:40]}'" if found else ""
        more = f"; check-data {files.name} lists all" if config else ""
        raise UserError(f"{path}, line {line}: {what}{cell}{more}")

    if not sum(len(cells.numbers) for cells in read_cells(path, types, needs, files, refuse)):
        raise UserError(f"{path}: no lines after the header")
    return header.fields


def _loaded(config: Config, path: Path, header: AtomicHeader) -> set[str]:
    """The fields of a file that RecBole loads, by `load_col` and `unload_col`."""
    suffix = path.suffix.removeprefix(".")
    columns = (config["load_col"] or {suffix: "*"}).get(suffix)
    chosen = set(header.fields) if columns == "*" else _named(columns)
    return chosen - _named((config["unload_col"] or {}).get(suffix))


def _found_instead(path: Path) -> str:
    """Words the end of a message: what is in the place where the dataset was expected."""
    if path.parent.is_dir():
        files = sorted(file.name for file in path.parent.iterdir())
        return f" (the folder has {', '.join(files[:8])})" if files else " (the folder is empty)"
    found = datasets_in(path.parent.parent)
    return f" (datasets found there: {', '.join(found)})" if found else ""


def check_dataset_counts(dataset: Dataset, published: Mapping[str, int] | None) -> None:
    """Warn if a dataset, after filtering, has other counts than the one of published results.

    It is no error, as other versions and filters may be wanted.

    Args:
        published: its ``users``, ``items`` and ``interactions``, where they are known.
    """
    known = (published or {}).items()
    if not known:
        return
    columns = {"users": dataset.uid_field, "items": dataset.iid_field}
    found = {name: dataset.inter_feat[field].nunique() for name, field in columns.items()}
    found["interactions"] = len(dataset.inter_feat)
    other = [f"{found[k]} {k} (not {n})" for k, n in known if found[k] != n]
    if other:
        logger.warning(
            "dataset '%s' is another version than published results are for: %s",
            dataset.dataset_name,
            ", ".join(other),
        )
