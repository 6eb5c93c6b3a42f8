"""Checks that the atomic files of a dataset exist, are whole and hold what a run needs.

They are read before RecBole loads them, so that the message can name the line of a fault.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from recbole.data.dataset import Dataset
from recbole.utils import ModelType

from recbole_etegrec.config import Config, is_ours
from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.atomic_header import read_header
from recbole_etegrec.errors import UserError, nearest

logger = logging.getLogger(__name__)

CHUNK = 2**24  # bytes of a file that are looked at together


def check_dataset_files(config: Config) -> None:
    """Read through the atomic files that RecBole will load.

    Raises:
        UserError: a file is missing or empty, its header is not ``field:type ...`` or lacks a
            field the run needs, or a line has another number of columns than the header.
    """
    files, parts = AtomicFiles.of(config), config["benchmark_filename"]
    load_col = config["load_col"] or {}
    time = config["TIME_FIELD"]
    fields = {config["USER_ID_FIELD"], files.item_field, *_named(load_col.get("inter"))}
    if parts:
        lists = files.item_field + config["LIST_SUFFIX"]
        # RecBole's sequential models have no other histories than those of the files.
        needed = config["MODEL_TYPE"] == ModelType.SEQUENTIAL and not is_ours(config)
        paths = [files.path(f"{part}.inter") for part in parts]
        _check_parts(paths, fields - {time, lists}, files, time, lists, lists_needed=needed)
    else:
        by_time = {time} if config["eval_args"]["order"] == "TO" else set()
        check_atomic_file(files.path("inter"), fields | by_time, files)
    for suffix, wanted in load_col.items():
        if suffix != "inter" and wanted:
            check_atomic_file(files.path(suffix), _named(wanted), files)


def _named(columns: Any) -> set[str]:
    """The fields that an entry of `load_col` names; RecBole reads '*' as all there are."""
    return set() if columns in (None, "*") else set(columns)


def _check_parts(
    paths: list[Path],
    fields: set[str],
    files: AtomicFiles,
    time: str,
    lists: str,
    *,
    lists_needed: bool,
) -> None:
    """Check pre-split files: all of them have times or none has, and the same for histories.

    Args:
        fields: that each must have.
        time: the field of times.
        lists: the field of histories.
        lists_needed: whether that may not be missing.
    """
    present = [set(check_atomic_file(path, fields, files)) for path in paths]
    for path, found in zip(paths, present, strict=True):
        if lists_needed and lists not in found:
            raise UserError(
                f"{path}: missing field '{lists}': RecBole's sequential models need the history "
                "of each line of pre-split files"
            )
    for field in sorted({time, lists} & set.union(*present)):
        for path, found in zip(paths, present, strict=True):
            if field not in found:
                raise UserError(f"{path}: missing field '{field}', which the other parts have")


def check_atomic_file(
    path: Path, fields: set[str], files: AtomicFiles, quoted: bool = True
) -> list[str]:
    """Read an atomic file through; returns the fields that it has.

    Args:
        fields: the fields that it must have.
        files: of the dataset that it belongs to.
        quoted: whether RecBole will read it, for which a cell may not begin with a quotation mark.
    """
    if not path.is_file():
        raise UserError(f"dataset '{files.name}': no file {path}{_found_instead(path)}")
    header = read_header(path, files.separator, files.encoding)
    if header.byte_order_mark:
        raise UserError(f"{path}: a byte order mark comes first: save it as UTF-8 without one")
    for column in header.columns:
        if column.count(":") != 1:
            raise UserError(f"{path}: header has '{column}' where 'field:type' is expected")
    present = header.fields
    for field in sorted(fields - set(present)):
        hint = nearest(field, present)
        raise UserError(f"{path}: missing field '{field}' (found {', '.join(present)}){hint}")
    with path.open("rb") as lines:
        next(lines, b"")
        if not _check_lines(path, lines, files.separator.encode(), len(present), quoted):
            raise UserError(f"{path}: no lines after the header")
    return present


def _check_lines(path: Path, lines: BinaryIO, separator: bytes, columns: int, quoted: bool) -> bool:
    """Check the columns of each line that is not blank; returns whether there is such a line."""
    number, filled = 2, False
    while chunk := lines.read(CHUNK) + lines.readline():
        filled = filled or not chunk.isspace()
        marked = chunk if len(separator) == 1 else chunk.replace(separator, b"\0")
        mark = separator if len(separator) == 1 else b"\0"
        text = np.frombuffer(marked, dtype=np.uint8)
        ends = np.flatnonzero(text == ord("\n"))
        if not chunk.endswith(b"\n"):
            ends = np.append(ends, len(text))
        before = np.searchsorted(np.flatnonzero(text == ord(mark)), ends)
        counts = np.diff(before, prepend=0)
        uneven = np.flatnonzero(counts != columns - 1)
        texts = chunk.split(b"\n") if len(uneven) else []
        for line in uneven:
            if texts[line].strip():
                raise UserError(
                    f"{path}, line {number + line}: {counts[line] + 1} columns, "
                    f"the header has {columns}"
                )
        if quoted:
            _check_quotes(path, chunk, separator, number)
        number += len(ends)
    return filled


def _check_quotes(path: Path, chunk: bytes, separator: bytes, number: int) -> None:
    """Refuse an opening quotation mark: pandas reads on over lines, to the next mark."""
    if not any(mark in b"\n" + chunk for mark in (b'\n"', separator + b'"')):
        return
    for place, line in enumerate(chunk.split(b"\n"), number):
        opened = any(cell.startswith(b'"') for cell in line.split(separator))
        if opened and line.count(b'"') % 2:
            raise UserError(
                f'{path}, line {place}: a cell begins with a quotation mark ("), and would be read '
                "on to the next one: remove it"
            )


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
    columns = {"users": dataset.uid_field, "items": dataset.iid_field}
    found = {name: dataset.inter_feat[field].nunique() for name, field in columns.items()}
    found["interactions"] = len(dataset.inter_feat)
    known = (published or {}).items()
    other = [f"{found[k]} {k} (not {n})" for k, n in known if found[k] != n]
    if other:
        logger.warning(
            "dataset '%s' is another version than published results are for: %s",
            dataset.dataset_name,
            ", ".join(other),
        )


def datasets_in(folder: Path) -> list[str]:
    """Names of the datasets under `folder`: its sub-folders ``X`` that hold an ``X*.inter``."""
    return sorted({file.parent.name for file in folder.glob("*/*.inter") if _is_named(file)})


def _is_named(file: Path) -> bool:
    return file.name.split(".")[0] == file.parent.name.split(".")[0]
