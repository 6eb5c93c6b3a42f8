"""Reads the `.item` file of a dataset as text, also columns that RecBole does not load."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.atomic_header import read_header


def read_items(files: AtomicFiles, fields: Sequence[str]) -> pd.DataFrame:
    """Read some fields of each item as text, indexed by the item's token.

    A missing value is empty text. Where an item has several lines the first counts, as in RecBole.
    """
    return _first_of_each(read_rows(files.path("item"), files, fields))


def read_rows(path: Path, files: AtomicFiles, fields: Sequence[str]) -> pd.DataFrame:
    """Read some fields of each line of a file of that form, indexed by the item's token."""
    token = files.item_field
    return read_texts(path, files, list({token: 0, **dict.fromkeys(fields)})).set_index(token)[
        list(fields)
    ]


def read_texts(path: Path, files: AtomicFiles, fields: Sequence[str]) -> pd.DataFrame:
    """Read some fields of each line of an atomic file as they stand; a missing one is empty."""
    header = read_header(path, files.separator, files.encoding)
    table = pd.read_csv(
        path,
        sep=files.separator if len(files.separator) == 1 else re.escape(files.separator),
        header=0,
        names=header.fields,
        usecols=lambda field: field in fields,
        dtype=str,
        keep_default_na=False,
        quoting=csv.QUOTE_NONE,
        on_bad_lines="warn",
        encoding=files.encoding,
        engine="c" if len(files.separator) == 1 else "python",
    )
    return table[list(fields)]


def read_titles(files: AtomicFiles, path: Path | None = None) -> dict[str, str]:
    """Read a title for each item token: the field ``title``, or the first ``token_seq`` field.

    Args:
        path: a file that is read in place of the dataset's ``.item``.
    """
    path = path or files.path("item")
    if not path.is_file():
        return {}
    types = read_header(path, files.separator, files.encoding).types
    words = [field for field, kind in types.items() if kind == "token_seq"]
    title = "title" if "title" in types else next(iter(words), None)
    if files.item_field not in types or title is None:
        return {}
    return _first_of_each(read_rows(path, files, [title]))[title].to_dict()


def _first_of_each(table: pd.DataFrame) -> pd.DataFrame:
    return table[~table.index.duplicated()]
