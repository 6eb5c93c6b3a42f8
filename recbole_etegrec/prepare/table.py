"""Anyone's own interactions, in a table (csv) or as records (jsonl), as atomic files.

Columns are named by the caller; times are numbers, or dates as ISO 8601 writes them.
"""

import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pandas as pd

from recbole_etegrec.data.cells import MISSING
from recbole_etegrec.errors import UserError, nearest
from recbole_etegrec.prepare.atomic import (
    InteractionWriter,
    ItemWriter,
    clean,
    refuse_existing,
)
from recbole_etegrec.prepare.records import (
    LINE_BYTES,
    BadLines,
    number_of,
    read_records,
    text_of,
)
from recbole_etegrec.storage.archives import open_gzip
from recbole_etegrec.storage.atomic import staged

ROWS = 100_000  # in memory at a time
TYPES = ("token", "token_seq", "float", "float_seq")

# Gives a file's rows as tables of text, indexed by line, with the columns asked for.
Frames = Callable[[Path, list[str], BadLines], Iterator[pd.DataFrame]]


def prepare_csv(separator: str | None = None, header: str = "True", **arguments) -> str:
    """Write the atomic files of a table; the other arguments are those of `_prepare`.

    Args:
        separator: between columns; by default the one the file seems to have.
        header: "False" where there is none; columns are then named by their number from 0.
    """
    separator = {"tab": "\t", "\\t": "\t"}.get(separator or "", separator)
    named = header.lower() != "false"

    def frames(path: Path, columns: list[str], bad: BadLines) -> Iterator[pd.DataFrame]:
        return _csv_frames(path, columns, separator, named)

    return _prepare(frames, **arguments)


def prepare_jsonl(**arguments) -> str:
    """Write the atomic files of records, one a line; the arguments are those of `_prepare`."""
    return _prepare(_jsonl_frames, **arguments)


def _prepare(
    frames: Frames,
    out: Path,
    input: Path,
    user: str,
    item: str,
    time: str,
    rating: str | None = None,
    items: Path | None = None,
    item_fields: str = "",
    overwrite: bool = False,
) -> str:
    """Write ``X.inter``, and ``X.item`` where `items` is given, to the folder `out` named X.

    Args:
        user, item, time, rating: columns of `input`; `item` is one of `items` too.
        item_fields: columns of `items` to write, separated by commas, ``name`` or ``name:type``
            with RecBole's types; without one it is ``token_seq``, words.

    Raises:
        UserError: a column is missing, files exist already, or no row is whole.
    """
    name = out.absolute().name
    kinds = _item_fields(items, item_fields)
    refuse_existing(out, [".inter", ".item"] if items else [".inter"], overwrite)
    with staged(out) as folder:
        bad = BadLines()
        writer = InteractionWriter(folder / f"{name}.inter", rated=rating is not None)
        columns = [user, item, time] + ([rating] if rating is not None else [])
        dates = None
        for frame in frames(input, columns, bad):
            if dates is None:
                dates = pd.to_numeric(frame[time], errors="coerce").isna().mean() > 0.5
            _add(writer, frame[columns], dates, bad)
        if not writer.items:
            raise UserError(f"input {input}: no row with a user, an item and a time, {bad}")
        report = [f"{input}: {bad}", f"{name}.inter: {writer.finish()}"]
        if items:
            path = folder / f"{name}.item"
            report += _write_items(path, frames, items, item, kinds, writer.items)
    return "\n".join(report) + "\n"


def _item_fields(items: Path | None, text: str) -> dict[str, str]:
    fields = {}
    for field in filter(None, text.split(",")):
        name, _, kind = field.partition(":")
        if kind and kind not in TYPES:
            raise UserError(f"item_fields ({field}): the type must be one of {', '.join(TYPES)}")
        fields[name] = kind or "token_seq"
    if bool(items) != bool(fields):
        raise UserError("items and item_fields: give both, or neither")
    return fields


def _add(writer: InteractionWriter, frame: pd.DataFrame, dates: bool, bad: BadLines) -> None:
    """Write the complete rows of a table with the columns user, item, time and perhaps rating."""
    times = _seconds(frame.iloc[:, 2], dates)
    cells = (map(clean, frame.iloc[:, column]) for column in (0, 1))
    ratings = frame.iloc[:, 3] if frame.shape[1] > 3 else [""] * len(frame)
    rows = zip(frame.index, *cells, times.tolist(), map(clean, ratings), strict=True)
    for number, user, item, time, rating in rows:
        if user in MISSING or item in MISSING:
            bad.add(number, "no user or no item")
        elif not math.isfinite(time):
            bad.add(number, "no time")
        elif rating and number_of(rating) is None:
            bad.add(number, "the rating is no number")
        else:
            writer.add(user, item, time, rating)


def _seconds(column: pd.Series, dates: bool) -> pd.Series:
    if not dates:
        return pd.to_numeric(column, errors="coerce")
    moments = pd.to_datetime(column, format="ISO8601", utc=True, errors="coerce")
    return (moments - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)


def _write_items(
    path: Path, frames: Frames, items: Path, item: str, kinds: dict[str, str], wanted: set[str]
) -> list[str]:
    bad, writer = BadLines(), ItemWriter(path, {"item_id": "token", **kinds}, wanted)
    for frame in frames(items, [item, *kinds], bad):
        columns = [map(clean, frame[name]) for name in (item, *kinds)]
        for number, *cells in zip(frame.index, *columns, strict=True):
            numbers = (
                c for c, kind in zip(cells[1:], kinds.values(), strict=True) if kind == "float"
            )
            if cells[0] in MISSING:
                bad.add(number, "no item")
            elif any(cell and number_of(cell) is None for cell in numbers):
                bad.add(number, "no number where one should be")
            else:
                writer.add(cells)
    return writer.finish(items, bad)


def _csv_frames(
    path: Path, columns: list[str], separator: str | None, named: bool
) -> Iterator[pd.DataFrame]:
    try:
        with path.open("rb") as raw:
            separator = separator or _separator(path, open_gzip(raw).readline(LINE_BYTES))
            raw.seek(0)
            chunks = pd.read_csv(
                open_gzip(raw),
                sep=separator,
                header=0 if named else None,
                index_col=False,  # a separator too many at the end of lines makes no index
                dtype=str,
                keep_default_na=False,
                encoding="utf-8-sig",
                chunksize=ROWS,
            )
            for chunk in chunks:
                chunk.columns = chunk.columns.map(str)
                _check_columns(path, columns, chunk.columns)
                chunk.index += 2 if named else 1  # the line, as long as no cell goes over two
                yield chunk[columns].fillna("")  # what a short line lacks
    except (ValueError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as a table ({reason})") from error


def _separator(path: Path, line: bytes) -> str:
    """Guess the separator: the usual one that occurs most often in the first line."""
    first = line.decode("utf-8")
    separator = max(",\t;|", key=first.count)
    if separator not in first:
        raise UserError(f"{path}: say how columns are separated, as --separator=';'")
    return separator


def _jsonl_frames(path: Path, columns: list[str], bad: BadLines) -> Iterator[pd.DataFrame]:
    records = read_records(path, bad)
    while rows := list(islice(records, ROWS)):
        _check_columns(path, columns, {key for _, record in rows for key in record})
        texts = [[text_of(record.get(name)) for name in columns] for _, record in rows]
        yield pd.DataFrame(texts, index=[number for number, _ in rows], columns=columns)


def _check_columns(path: Path, wanted: list[str], found) -> None:
    for name in wanted:
        if name not in found:
            known = ", ".join(map(str, sorted(found)))
            raise UserError(f"{path}: no column '{name}' (found {known}){nearest(name, found)}")
