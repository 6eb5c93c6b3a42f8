"""The first line of an atomic file, ``field:type`` a column, and the encoding of its text."""

from codecs import BOM_UTF8
from dataclasses import dataclass
from pathlib import Path

from recbole_etegrec.errors import UserError


@dataclass(frozen=True)
class AtomicHeader:
    """The columns that an atomic file names.

    Attributes:
        columns: their texts, which should be ``field:type``.
        byte_order_mark: whether one comes first. RecBole would read it as part of the first field.
    """

    columns: list[str]
    byte_order_mark: bool

    @property
    def types(self) -> dict[str, str]:
        """RecBole's type of each field, in the order of the columns."""
        return dict(column.partition(":")[::2] for column in self.columns)

    @property
    def fields(self) -> list[str]:
        """The field of each column."""
        return [column.partition(":")[0] for column in self.columns]


def read_header(path: Path, separator: str, encoding: str | None) -> AtomicHeader:
    """Read the header of an atomic file; both options are those of RecBole's config.

    Raises:
        UserError: the first line is not text in this encoding.
    """
    with path.open("rb") as lines:
        first = lines.readline().rstrip(b"\r\n")
    try:
        text = first.decode(atomic_encoding(encoding))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the header is not {error.encoding} text") from error
    return AtomicHeader(text.split(separator), first.startswith(BOM_UTF8))


def atomic_encoding(encoding: str | None) -> str:
    """The encoding that RecBole's key `encoding` names; UTF-8 where it is not set."""
    return encoding or "utf-8-sig"
