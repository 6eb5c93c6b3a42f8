"""The `.item` file of a dataset as text, whatever columns of it RecBole loads."""

import csv
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from recbole_etegrec.config import Config


def read_items(config: Config, fields: Sequence[str]) -> pd.DataFrame:
    """Some fields of each item as text, empty where there is none, by the item's token.

    Of lines with the same item the first counts, as it does in RecBole.
    """
    table = read_rows(_path(config), config, fields)
    return table[~table.index.duplicated()]


def read_rows(path: Path, config: Config, fields: Sequence[str]) -> pd.DataFrame:
    """Some fields of each line of a file like it, by the item's token."""
    wanted = [config["ITEM_ID_FIELD"], *fields]
    table = pd.read_csv(
        path,
        sep=config["field_separator"],
        usecols=lambda column: column.partition(":")[0] in wanted,
        dtype=str,
        keep_default_na=False,
        quoting=csv.QUOTE_NONE,
        on_bad_lines="warn",
        encoding=_encoding(config),
    )
    table.columns = [column.partition(":")[0] for column in table.columns]
    return table.set_index(wanted[0])[list(fields)]


def read_titles(config: Config, path: Path | None = None) -> dict[str, str]:
    """A text for each item token: the field ``title`` of ``.item``, or its first of words.

    Args:
        path: of a file like it, in its place.
    """
    path = path or _path(config)
    if not path.is_file():
        return {}
    with path.open(encoding=_encoding(config)) as lines:
        columns = next(lines, "").rstrip("\r\n").split(config["field_separator"])
    types = dict(column.partition(":")[::2] for column in columns)
    words = [field for field, kind in types.items() if kind == "token_seq"]
    title = "title" if "title" in types else next(iter(words), None)
    if config["ITEM_ID_FIELD"] not in types or title is None:
        return {}
    table = read_rows(path, config, [title])
    return table[~table.index.duplicated()][title].to_dict()


def _path(config: Config) -> Path:
    return Path(config["data_path"]) / f"{config['dataset']}.item"


def _encoding(config: Config) -> str:
    return config["encoding"] or "utf-8-sig"
