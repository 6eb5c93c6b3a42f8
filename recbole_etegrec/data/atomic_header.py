"""The first line of an atomic file, ``field:type`` a column, and the encoding of its text."""

from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from recbole.utils import FeatureType

from recbole_etegrec.errors import UserError, nearest

TYPES = {kind.value for kind in FeatureType}


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

    def faults(self, wanted: Set[str], kinds: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Pairs of what is wrong, and the text that is.

        Args:
            wanted: fields that there must be.
            kinds: the types that fields must have, where there are such fields.
        """
        if self.byte_order_mark:
            yield "a byte order mark comes first: save it as UTF-8 without one", ""
        for column in self.columns:
            field, _, kind = column.partition(":")
            if kind not in TYPES:
                known = ", ".join(sorted(TYPES))
                yield f"the header needs 'field:type', type one of {known}", column
            elif self.fields.count(field) > 1:
                yield f"field '{field}' comes twice in the header", ""
                break
            elif kind != kinds.get(field, kind):
                yield f"field '{field}' must be '{field}:{kinds[field]}'", column
        for field in sorted(wanted - set(self.fields)):
            hint = nearest(field, self.fields)
            yield f"missing field '{field}' (found {', '.join(self.fields)}){hint}", ""


def read_header(path: Path, separator: str, encoding: str | None) -> AtomicHeader:
    """Read the header of an atomic file; both options are those of RecBole's config.

    Raises:
        UserError: the first line is not text in this encoding, or ends in no line feed.
    """
    with path.open("rb") as lines:
        first = lines.readline().rstrip(b"\r\n")
    if b"\r" in first:
        raise UserError(f"{path}: lines end with carriage returns alone: save it with line feeds")
    try:
        text = first.decode(atomic_encoding(encoding))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the header is not {error.encoding} text") from error
    return AtomicHeader(text.split(separator), first.startswith(BOM_UTF8))


def atomic_encoding(encoding: str | None) -> str:
    """The encoding that RecBole's key `encoding` names; UTF-8 where it is not set."""
    return encoding or "utf-8-sig"
