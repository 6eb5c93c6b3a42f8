"""Where the atomic files of a dataset lie, and how they are written."""

from pathlib import Path
from typing import NamedTuple

from recbole_etegrec.config import Config
from recbole_etegrec.data.atomic_header import atomic_encoding


class AtomicFiles(NamedTuple):
    """The files of a dataset, ``NAME.inter`` and others beside it.

    Attributes:
        name: of the dataset.
        folder: that holds them.
        item_field: the column of item tokens.
        separator: of columns.
        encoding: of the text.
    """

    name: str
    folder: Path
    item_field: str
    separator: str
    encoding: str

    @classmethod
    def of(cls, config: Config) -> "AtomicFiles":
        """Those that a config names."""
        return cls(
            name=config["dataset"],
            folder=Path(config["data_path"]),
            item_field=config["ITEM_ID_FIELD"],
            separator=config["field_separator"],
            encoding=atomic_encoding(config["encoding"]),
        )

    def path(self, suffix: str) -> Path:
        """The file with a suffix such as ``inter``."""
        return self.folder / f"{self.name}.{suffix}"
