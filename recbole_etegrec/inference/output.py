"""Writes rankings as a file of rows: in parts, which survive an interruption, then joined.

Rows have the columns `COLUMNS`. Models are unknown here.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pandas as pd

from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.atomic import atomic_file, replace_text
from recbole_etegrec.storage.lock import held_output, strangers
from recbole_etegrec.storage.records import read_json

COLUMNS = ("user", "rank", "item", "title", "log_probability")
Row = tuple[str, int, str, str | None, float]


class PartedFile:
    """A file that is written when all of its parts are there; until then a former one stays.

    Args:
        path: ends in one of `FORMATS`.

    Raises:
        UserError: there is no such format or folder, or a package is missing.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        self._folder = self.path.with_name(f"{self.path.name}.parts")
        if self.path.suffix not in FORMATS:
            raise UserError(f"out {path}: must end in one of {', '.join(FORMATS)}")
        if self.path.suffix == ".parquet" and find_spec("pyarrow") is None:
            raise UserError(
                f"out {path}: parquet needs pyarrow: pip install 'recbole-etegrec[parquet]'"
            )
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise UserError(f"out {path}: cannot be written (no such folder, or a folder itself)")
        self._format = FORMATS[self.path.suffix]

    @contextmanager
    def open(self, order: dict[str, Any]) -> Iterator[None]:
        """Begin, or take up what an interruption has left; hold the file within the block.

        Args:
            order: the arguments that the rows depend on, as plain data.

        Raises:
            UserError: the parts found belong to another order, nothing can be written, or another
                process is writing the file.
        """
        with held_output(self.path):
            self._begin(order)
            yield

    def _begin(self, order: dict[str, Any]) -> None:
        note = self._folder / "order.json"
        text = json.dumps(order, indent=2)
        try:
            self._drop_former()
            self._folder.mkdir(exist_ok=True)
            if not note.is_file():
                if found := strangers(self._folder):
                    raise UserError(
                        f"out {self.path}: {self._folder} holds files of another program "
                        f"({', '.join(found[:5])}): choose another out"
                    )
                replace_text(note, text)
        except OSError as error:
            raise UserError(f"out {self.path}: cannot be written ({error.strerror})") from error
        found = read_json(note)
        other = [key for key, value in json.loads(text).items() if found.get(key) != value]
        if other:
            raise UserError(
                f"out {self.path}: {self._folder} is left of a command with another "
                f"{', '.join(other)}: repeat that one, or delete the folder"
            )

    def has(self, number: int) -> bool:
        """Whether a part is there, whole."""
        return self._part(number).is_file()

    def write(self, number: int, rows: list[Row]) -> None:
        """Write a part."""
        with atomic_file(self._part(number)) as fresh:
            self._format.write(rows, fresh)

    def join(self, parts: int) -> None:
        """Join the parts into the file, and delete them."""
        with atomic_file(self.path) as fresh:
            self._format.join(map(self._part, range(parts)), fresh)
        # Under another name first: parts whose order is gone already must not be taken up.
        os.replace(self._folder, self._former)
        self._drop_former()

    @property
    def _former(self) -> Path:
        return self._folder.with_name(f".{self._folder.name}.old")

    def _drop_former(self) -> None:
        shutil.rmtree(self._former, ignore_errors=True)

    def _part(self, number: int) -> Path:
        return self._folder / f"{number:06}"


class _Format(NamedTuple):
    write: Callable[[list[Row], Path], None]
    join: Callable[[Iterable[Path], Path], None]


def _write_csv(rows: list[Row], path: Path) -> None:
    pd.DataFrame(rows, columns=COLUMNS).to_csv(path, index=False, header=False)


def _join_csv(parts: Iterable[Path], path: Path) -> None:
    with path.open("wb") as file:
        file.write((",".join(COLUMNS) + os.linesep).encode())
        _append(parts, file)


def _write_jsonl(rows: list[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            record = dict(zip(COLUMNS, row, strict=True))
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def _join_jsonl(parts: Iterable[Path], path: Path) -> None:
    with path.open("wb") as file:
        _append(parts, file)


def _append(parts: Iterable[Path], file: BinaryIO) -> None:
    for part in parts:
        with part.open("rb") as source:
            shutil.copyfileobj(source, file)


def _schema():
    import pyarrow as pa

    kinds = (pa.string(), pa.int32(), pa.string(), pa.string(), pa.float64())
    return pa.schema(zip(COLUMNS, kinds, strict=True))


def _write_parquet(rows: list[Row], path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = list(zip(*rows, strict=True)) or [[]] * len(COLUMNS)
    arrays = [pa.array(values, kind) for values, kind in zip(columns, _schema().types, strict=True)]
    parquet.write_table(pa.Table.from_arrays(arrays, schema=_schema()), path)


def _join_parquet(parts: Iterable[Path], path: Path) -> None:
    from pyarrow import parquet

    with parquet.ParquetWriter(path, _schema()) as writer:
        for part in parts:
            writer.write_table(parquet.read_table(part))


FORMATS = {
    ".csv": _Format(_write_csv, _join_csv),
    ".jsonl": _Format(_write_jsonl, _join_jsonl),
    ".parquet": _Format(_write_parquet, _join_parquet),
}
