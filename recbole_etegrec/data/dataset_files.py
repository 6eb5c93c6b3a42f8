"""Checks that the atomic files of a dataset exist, are whole and hold what a run needs.

They are read before RecBole loads them, so that the message can name the line of a fault.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from recbole.utils import ModelType

from recbole_etegrec.data.atomic_header import read_header
from recbole_etegrec.errors import UserError, nearest

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset

    from recbole_etegrec.config import Config

logger = logging.getLogger(__name__)

CHUNK = 2**24  # bytes of a file that are looked at together


def check_dataset_files(config: "Config") -> None:
    """Read through the atomic files that RecBole will load.

    Raises:
        UserError: a file is missing or empty, its header is not ``field:type ...`` or lacks a
            field the run needs, or a line has another number of columns than the header.
    """
    from recbole_etegrec.data.item_embedding import embedding_sources

    folder, name = Path(config["data_path"]), config["dataset"]
    parts = config["benchmark_filename"]
    load_col = config["load_col"] or {}
    fields = {config["USER_ID_FIELD"], config["ITEM_ID_FIELD"], *_named(load_col.get("inter"))}
    if parts:
        _check_parts([folder / f"{name}.{part}.inter" for part in parts], fields, config)
    else:
        time = {config["TIME_FIELD"]} if config["eval_args"]["order"] == "TO" else set()
        check_atomic_file(folder / f"{name}.inter", fields | time, config)
    if "text" in embedding_sources(config):
        fields = {config["ITEM_ID_FIELD"], *config["text_fields"]}
        check_atomic_file(folder / f"{name}.item", fields, config, quoted=False)
    for suffix, wanted in load_col.items():
        if suffix != "inter" and wanted:
            check_atomic_file(folder / f"{name}.{suffix}", _named(wanted), config)


def _named(columns: Any) -> set[str]:
    """The fields that an entry of `load_col` names; RecBole reads '*' as all there are."""
    return set() if columns in (None, "*") else set(columns)


def _check_parts(paths: list[Path], fields: set[str], config: "Config") -> None:
    """Check pre-split files: all of them have times or none has, and the same for histories."""
    lists = config["ITEM_ID_FIELD"] + config["LIST_SUFFIX"]
    optional = {config["TIME_FIELD"], lists}
    present = [set(check_atomic_file(path, fields - optional, config)) for path in paths]
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL and "num_beams" not in config:
        for path, found in zip(paths, present, strict=True):
            if lists not in found:
                raise UserError(
                    f"{path}: missing field '{lists}': RecBole's sequential models need the "
                    "history of each line of pre-split files"
                )
    for field in sorted(optional & set.union(*present)):
        for path, found in zip(paths, present, strict=True):
            if field not in found:
                raise UserError(f"{path}: missing field '{field}', which the other parts have")


def check_atomic_file(
    path: Path, fields: set[str], config: "Config", quoted: bool = True
) -> list[str]:
    """Read an atomic file through; returns the fields that it has.

    Args:
        fields: the fields that it must have.
        quoted: whether RecBole will read it, for which a cell may not begin with a quotation mark.
    """
    if not path.is_file():
        raise UserError(f"dataset '{config['dataset']}': no file {path}{_found_instead(path)}")
    header = read_header(path, config["field_separator"], config["encoding"])
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
        separator = config["field_separator"].encode()
        if not _check_lines(path, lines, separator, len(present), quoted):
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


def check_dataset_counts(config: "Config", dataset: "Dataset") -> None:
    """Warn if a dataset, after filtering, has other counts than the one of published results.

    It is no error, as other versions and filters may be wanted.
    """
    columns = {"users": dataset.uid_field, "items": dataset.iid_field}
    found = {name: dataset.inter_feat[field].nunique() for name, field in columns.items()}
    found["interactions"] = len(dataset.inter_feat)
    published = config["dataset_counts"] or {}
    other = [f"{found[k]} {k} (not {n})" for k, n in published.items() if found[k] != n]
    if other:
        logger.warning(
            "dataset '%s' is another version than published results are for: %s",
            config["dataset"],
            ", ".join(other),
        )


def datasets_in(folder: Path) -> list[str]:
    """Names of the datasets under `folder`: its sub-folders ``X`` that hold an ``X*.inter``."""
    return sorted({file.parent.name for file in folder.glob("*/*.inter") if _is_named(file)})


def _is_named(file: Path) -> bool:
    return file.name.split(".")[0] == file.parent.name.split(".")[0]
