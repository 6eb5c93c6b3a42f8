"""Reads the `.item` file of a dataset as text, also columns that RecBole does not load."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from recbole_etegrec.config import Config
from recbole_etegrec.data.atomic_header import atomic_encoding, read_header


def read_items(config: Config, fields: Sequence[str]) -> pd.DataFrame:
    """Read some fields of each item as text, indexed by the item's token.

    A missing value is empty text. Where an item has several lines the first counts, as in RecBole.
    """
    table = read_rows(_path(config), config, fields)
    return table[~table.index.duplicated()]


def read_rows(path: Path, config: Config, fields: Sequence[str]) -> pd.DataFrame:
    """Read some fields of each line of a file of that form, indexed by the item's token."""
    header = read_header(path, config["field_separator"], config["encoding"])
    token = config["ITEM_ID_FIELD"]
    table = pd.read_csv(
        path,
        sep=config["field_separator"],
        header=0,
        names=header.fields,
        usecols=lambda field: field in {token, *fields},
        dtype=str,
        keep_default_na=False,
        quoting=csv.QUOTE_NONE,
        on_bad_lines="warn",
        encoding=atomic_encoding(config["encoding"]),
    )
    return table.set_index(token)[list(fields)]


def read_titles(config: Config, path: Path | None = None) -> dict[str, str]:
    """Read a title for each item token: the field ``title``, or the first ``token_seq`` field.

    Args:
        path: a file that is read in place of the dataset's ``.item``.
    """
    path = path or _path(config)
    if not path.is_file():
        return {}
    types = read_header(path, config["field_separator"], config["encoding"]).types
    words = [field for field, kind in types.items() if kind == "token_seq"]
    title = "title" if "title" in types else next(iter(words), None)
    if config["ITEM_ID_FIELD"] not in types or title is None:
        return {}
    table = read_rows(path, config, [title])
    return table[~table.index.duplicated()][title].to_dict()


def _path(config: Config) -> Path:
    return Path(config["data_path"]) / f"{config['dataset']}.item"
