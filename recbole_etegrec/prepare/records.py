"""Reads the records of a raw file, one a line, and counts the lines that hold none."""

import ast
import json
import math
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.archives import open_gzip

NAMED_LINES = 5
LINE_BYTES = 64 * 2**20  # of one record at most


class BadLines:
    """Lines that were left out: how many, and where the first ones are."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[str] = []

    def add(self, number: int, reason: str) -> None:
        """Count line `number`, left out for `reason`."""
        self.count += 1
        if len(self._first) < NAMED_LINES:
            self._first.append(f"{number}: {reason}")

    def __str__(self) -> str:
        if not self.count:
            return "no malformed lines"
        more = ", ..." if self.count > len(self._first) else ""
        return f"{self.count} malformed lines left out (line {', '.join(self._first)}{more})"


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and text of each line of a file, with a progress bar.

    The file may be compressed by gzip, whatever its name.

    Raises:
        UserError: the file cannot be read, or is cut short.
    """
    number, size = 0, path.stat().st_size
    bar = tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=None)
    try:
        with bar, path.open("rb") as raw:
            lines = iter(partial(open_gzip(raw).readline, LINE_BYTES), b"")
            for number, line in enumerate(lines, start=1):
                if number % 10_000 == 0:
                    bar.update(raw.tell() - bar.n)
                yield number, line
            bar.update(size - bar.n)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(
            f"{path}: damaged or cut short after line {number} ({error}); fetch it again"
        ) from error


def read_records(path: Path, bad: BadLines) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and record of each line that holds one.

    A line is JSON or, as in Amazon's metadata of 2014, a dictionary in Python's spelling.

    Raises:
        UserError: see :func:`read_lines`; or the file holds a JSON array.
    """
    for number, line in read_lines(path):
        if number == 1 and line.lstrip().startswith(b"["):
            raise UserError(f"{path}: holds a JSON array; write one record a line")
        record = _parse(line)
        if record is not None:
            yield number, record
        elif line.strip():
            bad.add(number, "no record of JSON")


def _parse(line: bytes) -> dict[str, Any] | None:
    for parse in (json.loads, lambda text: ast.literal_eval(text.decode().strip())):
        try:
            record = parse(line)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return record if isinstance(record, dict) else None
    return None


def number_of(value: Any) -> float | None:
    """Make a value a finite number, or None if it is not one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def text_of(value: Any) -> str:
    """Make a value text: of a list its words, also of nested ones; of None nothing."""
    if isinstance(value, (list, tuple)):
        return " ".join(filter(None, map(text_of, value)))
    return "" if value is None else str(value)
