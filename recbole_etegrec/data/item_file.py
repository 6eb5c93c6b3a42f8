"""The `.item` file of a dataset as text, whatever columns of it RecBole loads."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from recbole_etegrec.config import Config
from recbole_etegrec.data.atomic_header import atomic_encoding, read_header


def read_items(config: Config, fields: Sequence[str]) -> pd.DataFrame:
    """Some fields of each item as text, empty where there is none, by the item's token.

    Of lines with the same item the first counts, as it does in RecBole.
    """
    table = read_rows(_path(config), config, fields)
    return table[~table.index.duplicated()]


def read_rows(path: Path, config: Config, fields: Sequence[str]) -> pd.DataFrame:
    """Some fields of each line of a file like it, by the item's token."""
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
    """A text for each item token: the field ``title`` of ``.item``, or its first of words.

    Args:
        path: a file of the same form that is read in its place.
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
