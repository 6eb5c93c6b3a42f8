"""The report of `recbole-etegrec check-data`: faults of a dataset's files, and their contents.

Files are read line by line as they lie; filters that a run applies are not applied here.
"""

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from recbole.utils import FeatureType
from tqdm import tqdm

from recbole_etegrec.config import Config
from recbole_etegrec.data.atomic_header import atomic_encoding, read_header
from recbole_etegrec.data.dataset import sequence_offsets
from recbole_etegrec.data.dataset_files import datasets_in
from recbole_etegrec.errors import UserError, nearest
from recbole_etegrec.prepare.atomic import MISSING

NAMED_LINES = 3
NEEDED = 4  # interactions of a user who has a validation and a test item
TYPES = {kind.value for kind in FeatureType}


class Findings:
    """Collects faults; equal ones become one line with their number and first places."""

    def __init__(self) -> None:
        self.errors = 0
        self._places: dict[tuple[str, str, str], list[str]] = {}
        self._counts: dict[tuple[str, str, str], int] = {}

    def error(self, path: Path, what: str, line: int = 0, found: str = "") -> None:
        """Note a fault at which a run would fail, or which it would misread."""
        self.errors += 1
        self._add(("error", path.name, what), line, found)

    def warn(self, path: Path, what: str, line: int = 0, found: str = "") -> None:
        """Note a peculiarity that no run fails at."""
        self._add(("warning", path.name, what), line, found)

    def _add(self, key: tuple[str, str, str], line: int, found: str) -> None:
        self._counts[key] = self._counts.get(key, 0) + 1
        places = self._places.setdefault(key, [])
        if line and len(places) < NAMED_LINES:
            places.append(f"{line} ('{found[:40]}')" if found else str(line))

    def __str__(self) -> str:
        lines = []
        for (level, file, what), places in self._places.items():
            count = self._counts[level, file, what]
            where = f", line {', '.join(places)}" if places else ""
            more = f" and {count - len(places)} more" if places and count > len(places) else ""
            lines.append(f"{level}: {file}{where}{more}: {what}\n")
        return "".join(lines)


class Interactions(NamedTuple):
    """The well-formed lines of an ``.inter``: indices of tokens, times, line numbers."""

    users: dict[str, int]
    items: dict[str, int]
    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    line: np.ndarray


def check_data(name: str, values: Mapping[str, str]) -> tuple[str, int]:
    """Read the files of a dataset through.

    Args:
        name: of the dataset.
        values: keys of a run, such as ``data_path``; the names of fields are among them.

    Returns:
        The report, and the number of errors in it.

    Raises:
        UserError: there is no such dataset, or an unknown key.
    """
    if not name or name.startswith("-"):
        raise UserError("check-data: name a dataset: recbole-etegrec check-data NAME")
    config = Config(dataset=name, config_dict=dict(values))
    if config["benchmark_filename"]:
        raise UserError(f"check-data: benchmark_filename: only {name}.inter is read; leave it out")
    folder = Path(config["data_path"])
    path = folder / f"{name}.inter"
    if not path.is_file():
        known = ", ".join(datasets_in(folder.parent)) or "none"
        raise UserError(f"dataset '{name}': no file {path} (datasets found there: {known})")
    findings = Findings()
    table = _read_interactions(path, config, findings)
    summary = []
    if table is not None and len(table.user):
        summary = _summary(path, table, findings)
    elif not findings.errors:
        findings.error(path, "no lines after the header")
    items = folder / f"{name}.item"
    if items.is_file():
        summary += _check_items(items, table.items if table else {}, config, findings)
    return "".join([str(findings), *summary]), findings.errors


def _read_interactions(path: Path, config: Config, findings: Findings) -> Interactions | None:
    names = (config["USER_ID_FIELD"], config["ITEM_ID_FIELD"], config["TIME_FIELD"])
    header = _read_header(path, names, config, findings)
    if header is None:
        return None
    columns = [list(header).index(name) for name in names]
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    user_of, item_of, times, numbers = array("q"), array("q"), array("d"), array("q")
    for number, cells in _rows(path, header, config, findings):
        user, item, moment = (cells[column] for column in columns)
        if user in MISSING or item in MISSING:
            field, cell = (names[0], user) if user in MISSING else (names[1], item)
            findings.error(path, f"field '{field}' is empty, or reads as missing", number, cell)
            continue
        try:
            time = float(moment)
        except ValueError:
            time = math.nan
        if not math.isfinite(time):
            findings.error(path, f"field '{names[2]}' is no time", number, moment)
            continue
        user_of.append(users.setdefault(user, len(users)))
        item_of.append(items.setdefault(item, len(items)))
        times.append(time)
        numbers.append(number)
    arrays = (
        np.frombuffer(values, values.typecode) for values in (user_of, item_of, times, numbers)
    )
    return Interactions(users, items, *arrays)


def _read_header(
    path: Path, wanted: Iterable[str], config: Config, findings: Findings
) -> dict[str, str] | None:
    """Read the fields and their types; None if lines cannot be split by them."""
    header = read_header(path, config["field_separator"], config["encoding"])
    if header.byte_order_mark:
        findings.error(path, "a byte order mark comes first: save it as UTF-8 without one", 1)
    fields = {}
    for column in header.columns:
        field, _, kind = column.partition(":")
        if kind not in TYPES:
            known = ", ".join(sorted(TYPES))
            findings.error(path, f"the header needs 'field:type', type one of {known}", 1, column)
        elif field in fields:
            findings.error(path, f"field '{field}' comes twice in the header", 1)
        fields[field] = kind
    for field in wanted:
        if field not in fields:
            hint = nearest(field, fields)
            findings.error(path, f"missing field '{field}' (found {', '.join(fields)}){hint}", 1)
    readable = len(fields) == len(header.columns) and not set(wanted) - fields.keys()
    return fields if readable and set(fields.values()) <= TYPES else None


def _rows(
    path: Path, header: dict[str, str], config: Config, findings: Findings
) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each line as wide as the header; checks its numbers."""
    encoding, separator = atomic_encoding(config["encoding"]), config["field_separator"]
    numeric = [
        (column, field)
        for column, (field, kind) in enumerate(header.items())
        if kind in ("float", "float_seq") and field != config["TIME_FIELD"]
    ]
    size = path.stat().st_size
    bar = tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=None)
    with bar, path.open("rb") as lines:
        next(lines, None)
        for number, raw in enumerate(lines, start=2):
            if number % 50_000 == 0:
                bar.update(lines.tell() - bar.n)
            try:
                line = raw.decode(encoding).rstrip("\r\n")
            except UnicodeDecodeError as error:
                findings.error(path, f"not {error.encoding} text (byte {error.start + 1})", number)
                continue
            cells = line.split(separator)
            if len(cells) != len(header):
                if line.strip():
                    what = f"{len(cells)} columns, the header has {len(header)}"
                    findings.error(path, what, number)
                continue
            if '"' in line and any(cell.startswith('"') for cell in cells):
                what = "a cell begins with a quotation mark: RecBole reads on to the next one"
                findings.error(path, what, number)
            for column, field in numeric:
                try:
                    float(cells[column])
                except ValueError:
                    _look_closer(path, field, cells[column], number, findings)
            yield number, cells
        bar.update(size - bar.n)


def _look_closer(path: Path, field: str, cell: str, number: int, findings: Findings) -> None:
    """Tell a missing number, or a list of numbers, from text that is no number."""
    if cell in MISSING:
        findings.warn(path, f"field '{field}' is empty: RecBole takes the mean", number)
        return
    try:
        for part in cell.split():
            float(part)
    except ValueError:
        findings.error(path, f"field '{field}' is no number", number, cell)


def _summary(path: Path, table: Interactions, findings: Findings) -> list[str]:
    """Summarise the interactions; adds faults that only show among several of them."""
    order = np.lexsort((table.line, table.time, table.user))
    user, time, line = table.user[order], table.time[order], table.line[order]
    lengths = np.diff(sequence_offsets(user))
    same_user = user[1:] == user[:-1]
    tied = same_user & (time[1:] == time[:-1])
    rounded = time.astype(np.float32)
    merged = same_user & (rounded[1:] == rounded[:-1]) & ~tied
    astray = int((merged & (line[1:] < line[:-1])).sum())
    if astray:
        what = (
            f"{astray} neighbours in a history are closer in time than RecBole's float32 tells, "
            "and the file has them the other way round: sort its lines by time"
        )
        findings.warn(path, what)
    _find_repeated(path, table, findings)
    short = int((lengths < NEEDED).sum())
    if short:
        findings.warn(
            path, f"{short} users have fewer than {NEEDED} interactions, which leave-one-out needs"
        )
    pairs = max(int(same_user.sum()), 1)
    return [
        f"{len(table.users)} users, {len(table.items)} items, {len(user)} interactions\n",
        f"history: mean {lengths.mean():.2f}, median {np.median(lengths):g}, "
        f"longest {lengths.max()}\n",
        f"neighbours in a history at the same time: {tied.sum() / pairs:.1%}, "
        f"as float32 {(tied | merged).sum() / pairs:.1%}\n",
    ]


def _find_repeated(path: Path, table: Interactions, findings: Findings) -> None:
    order = np.lexsort((table.line, table.time, table.item, table.user))
    keys = (table.user[order], table.item[order], table.time[order])
    same = np.logical_and.reduce([key[1:] == key[:-1] for key in keys])
    for number in np.sort(table.line[order][1:][same]).tolist():
        findings.warn(path, "same user, item and time as an earlier line", number)


def _check_items(
    path: Path, known: Mapping[str, int], config: Config, findings: Findings
) -> list[str]:
    field = config["ITEM_ID_FIELD"]
    header = _read_header(path, [field], config, findings)
    if header is None:
        return []
    column, seen = list(header).index(field), set()
    for number, cells in _rows(path, header, config, findings):
        item = cells[column]
        if item in MISSING:
            findings.error(path, f"field '{field}' is empty, or reads as missing", number, item)
        elif item in seen:
            findings.warn(path, "item of an earlier line, which counts", number, item)
        seen.add(item)
    alone = len(seen - known.keys())
    return [
        f"{path.name}: {len(seen)} items, {alone} of them without interactions; "
        f"{len(known.keys() - seen)} items of interactions are not in it\n"
    ]
