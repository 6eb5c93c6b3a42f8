"""Reads the lines of an atomic file as they stand, and finds the cells that a run would misread.

A run raises the first fault, `check-data` lists them all. Nothing is done in Python for a cell that
is sound; a quotation mark is a character like any other.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recbole_etegrec.data.atomic_files import AtomicFiles

CHUNK = 2**24  # bytes of a file that are looked at together

# What pandas, and so RecBole, takes for a missing value; an id of this spelling would be lost.
MISSING = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN"]
    + ["<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"]
)
_MISSING = {cell.encode() for cell in MISSING}
_MAY_BE_MISSING = np.isin(np.arange(256), [cell[0] for cell in _MISSING if cell])
_LONGEST_MISSING = max(map(len, _MISSING))
_LARGEST = float(np.finfo(np.float32).max)  # RecBole's numbers are float32
# Characters of a number: digits weigh nothing, a cell of weight 1 has one decimal point.
_WEIGHTS = np.full(256, 2, dtype=np.uint8)
_WEIGHTS[ord("0") : ord("9") + 1], _WEIGHTS[ord(".")] = 0, 1

# Takes the number of a line, what is wrong with it, the cell, and whether a run can bear it.
Report = Callable[[int, str, str, bool], None]


class Cells(NamedTuple):
    """Some lines that are as wide as the header.

    Attributes:
        text: bytes that hold them.
        numbers: of the lines in the file, from 1 ``[lines]``.
        starts: where in the text each cell begins ``[lines, columns]``.
        ends: where it ends ``[lines, columns]``.
        encoding: of the text.
    """

    text: bytes
    numbers: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    encoding: str

    def raw(self, line: int, column: int) -> bytes:
        """One cell."""
        return self.text[self.starts[line, column] : self.ends[line, column]]

    def column(self, column: int) -> list[str]:
        """The texts of a column."""
        places = zip(self.starts[:, column].tolist(), self.ends[:, column].tolist(), strict=True)
        return [self.text[start:end].decode(self.encoding) for start, end in places]


class Needs(NamedTuple):
    """What fields of a file must hold, beyond their types.

    Attributes:
        ids: fields of users and items, which may not be missing.
        time: the field of times, which may not be missing either.
    """

    ids: frozenset[str]
    time: str


def read_cells(
    path: Path, types: Mapping[str, str], needs: Needs, files: AtomicFiles, report: Report
) -> Iterator[Cells]:
    """Yield the lines that are as wide as the header, and report faults on the way.

    Args:
        types: the type of each column, by its field; none where it is not looked at.
        report: is told each fault.
    """
    columns = len(types)
    for text, first in _chunks(path):
        cells = _cells(text, first, columns, files, report)
        for column, (field, kind) in enumerate(types.items()):
            _check_column(cells, column, field, kind, needs, report)
        yield cells


def _chunks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Whole lines of a file without its header, and the number of the first of them."""
    with path.open("rb") as lines:
        next(lines, b"")
        number = 2
        while chunk := lines.read(CHUNK) + lines.readline():
            yield chunk, number
            number += chunk.count(b"\n")


def _cells(text: bytes, first: int, columns: int, files: AtomicFiles, report: Report) -> Cells:
    """Split lines; those that cannot be split or decoded are reported and left out."""
    separator = files.separator.encode()
    damaged = _damaged_lines(text, first, files.encoding, report)
    if len(separator) > 1:
        text, separator = text.replace(separator, b"\0"), b"\0"
    characters = np.frombuffer(text, dtype=np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))
    if not text.endswith(b"\n"):
        ends = np.append(ends, len(characters))
    starts = np.append(0, ends[:-1] + 1)
    if b"\r" in text:
        ends = ends - ((ends > starts) & (characters[ends - 1] == ord("\r")))
    separators = np.flatnonzero(characters == separator[0])
    before = np.searchsorted(separators, ends)
    counts = np.diff(before, prepend=0)
    whole = counts == columns - 1
    for line in np.flatnonzero(~whole):
        if counts[line] or text[starts[line] : ends[line]].strip():
            what = f"{counts[line] + 1} columns, the header has {columns}"
            report(first + int(line), what, "", False)
    if columns == 1:
        whole &= ends > starts
    whole[damaged] = False
    if whole.all():
        inner = separators.reshape(len(ends), columns - 1)
    else:
        inner = separators[(before - counts)[whole, None] + np.arange(columns - 1)]
        starts, ends = starts[whole], ends[whole]
    numbers = first + np.flatnonzero(whole)
    begin = np.column_stack([starts, inner + 1])
    return Cells(text, numbers, begin, np.column_stack([inner, ends]), files.encoding)


def _damaged_lines(text: bytes, first: int, encoding: str, report: Report) -> list[int]:
    """Report lines that are no text, or that hold what ends a line or a text."""
    try:
        text.decode(encoding)
        sound = True
    except UnicodeDecodeError:
        sound = False
    returns = b"\r" in text and text.count(b"\r") != text.count(b"\r\n")
    if sound and not returns and b"\0" not in text:
        return []
    damaged = []
    for place, line in enumerate(text.split(b"\n")):
        what = ""
        if b"\0" in line:
            what = "has a character NUL"
        elif b"\r" in line.removesuffix(b"\r"):
            what = "has a carriage return inside, where pandas would break it"
        try:
            line.decode(encoding)
        except UnicodeDecodeError as error:
            what = f"not {error.encoding} text (byte {error.start + 1})"
        if what:
            damaged.append(place)
            report(first + place, what, "", False)
    return damaged


def _check_column(
    cells: Cells, column: int, field: str, kind: str, needs: Needs, report: Report
) -> None:
    if field in needs.ids:
        _check_ids(cells, column, field, report)
    elif kind == "float":
        _check_numbers(cells, column, field, field == needs.time, report)
    elif kind == "float_seq":
        for line in range(len(cells.numbers)):
            cell = cells.raw(line, column)
            if not all(map(is_number, cell.split())):
                _say(cells, line, column, f"field '{field}' is no number", report)


def _check_ids(cells: Cells, column: int, field: str, report: Report) -> None:
    starts, ends = cells.starts[:, column], cells.ends[:, column]
    lengths = ends - starts
    characters = np.frombuffer(cells.text + b"\0", dtype=np.uint8)
    suspects = (lengths <= _LONGEST_MISSING) & _MAY_BE_MISSING[characters[starts]]
    for line in np.flatnonzero((lengths == 0) | suspects):
        if cells.raw(line, column) in _MISSING:
            _say(cells, line, column, f"field '{field}' is empty, or reads as missing", report)


def _check_numbers(cells: Cells, column: int, field: str, needed: bool, report: Report) -> None:
    """Check a column of numbers; those of digits and at most one point are right as they are."""
    starts, ends = cells.starts[:, column], cells.ends[:, column]
    if len(starts) == 0:
        return
    weights = np.append(_WEIGHTS[np.frombuffer(cells.text, dtype=np.uint8)], np.uint8(0))
    # Sums from each start to its end, and from there to the next start, which are not needed.
    bounds = np.column_stack([starts, ends]).reshape(-1)
    weight = np.add.reduceat(weights, bounds, dtype=np.int32)[::2]
    lengths = ends - starts
    plain = (weight <= 1) & (lengths > weight) & (lengths < 38)
    for line in np.flatnonzero(~plain):
        cell = cells.raw(line, column)
        if needed and not is_number(cell):
            _say(cells, line, column, f"field '{field}' is no time", report)
        elif not cell:
            what = f"field '{field}' is empty: RecBole takes the mean"
            report(int(cells.numbers[line]), what, "", True)
        elif not is_number(cell):
            _say(cells, line, column, f"field '{field}' is no number", report)


def _say(cells: Cells, line: int, column: int, what: str, report: Report) -> None:
    found = cells.raw(line, column).decode(cells.encoding)
    report(int(cells.numbers[line]), what, found, False)


def is_number(cell: bytes) -> bool:
    """Whether pandas reads a cell as a number that is finite in float32."""
    try:
        value = float(cell)
    except ValueError:
        return False
    return b"_" not in cell and math.isfinite(value) and abs(value) <= _LARGEST
