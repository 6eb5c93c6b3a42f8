"""The `.item` file of a dataset as text, whatever columns of it RecBole loads."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from recbole_etegrec.data.atomic_files import AtomicFiles


def read_items(files: AtomicFiles, fields: Sequence[str]) -> pd.DataFrame:
    """Some fields of each item as text, empty where there is none, by the item's token.

    Of lines with the same item the first counts, as it does in RecBole.
    """
    return _first_of_each(read_rows(files.path("item"), files, fields))


def read_rows(path: Path, files: AtomicFiles, fields: Sequence[str]) -> pd.DataFrame:
    """Some fields of each line of a file like those of a dataset, by the item's token."""
    wanted = [files.item_field, *fields]
    table = pd.read_csv(
        path,
        sep=files.separator,
        usecols=lambda column: column.partition(":")[0] in wanted,
        dtype=str,
        keep_default_na=False,
        quoting=csv.QUOTE_NONE,
        on_bad_lines="warn",
        encoding=files.encoding,
    )
    table.columns = [column.partition(":")[0] for column in table.columns]
    return table.set_index(wanted[0])[list(fields)]


def read_titles(files: AtomicFiles, path: Path | None = None) -> dict[str, str]:
    """A text for each item token: the field ``title`` of ``.item``, or its first of words.

    Args:
        path: of a file like it, in its place.
    """
    path = path or files.path("item")
    if not path.is_file():
        return {}
    with path.open(encoding=files.encoding) as lines:
        columns = next(lines, "").rstrip("\r\n").split(files.separator)
    types = dict(column.partition(":")[::2] for column in columns)
    words = [field for field, kind in types.items() if kind == "token_seq"]
    title = "title" if "title" in types else next(iter(words), None)
    if files.item_field not in types or title is None:
        return {}
    return _first_of_each(read_rows(path, files, [title]))[title].to_dict()


def _first_of_each(table: pd.DataFrame) -> pd.DataFrame:
    return table[~table.index.duplicated()]
