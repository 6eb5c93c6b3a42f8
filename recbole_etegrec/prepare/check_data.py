"""The report of `recbole-etegrec check-data`: faults of a dataset's files, and their contents.

Files are read as they lie, with the checks of a run; filters that a run applies are not applied.
"""

from array import array
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from recbole_etegrec.config import Config
from recbole_etegrec.config.datasets import datasets_in
from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.atomic_header import read_header
from recbole_etegrec.data.cells import MISSING, Cells, is_number, read_cells
from recbole_etegrec.data.dataset_files import Fields, part_paths
from recbole_etegrec.data.filled_histories import find_padding
from recbole_etegrec.data.sequences import sequence_offsets
from recbole_etegrec.errors import UserError

NAMED_LINES = 3
NEEDED = 4  # interactions of a user who has a validation and a test item


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
    """The well-formed lines of an ``.inter``: indices of tokens, times, line numbers.

    Attributes:
        times: 0 where the file has none.
        histories: the length of each line's history, 0 where the file has none.
        in_histories: the items of histories.
    """

    users: dict[str, int]
    items: dict[str, int]
    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    line: np.ndarray
    histories: np.ndarray
    in_histories: set[str]


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
    files, parts = AtomicFiles.of(config), config["benchmark_filename"]
    paths = part_paths(config) if parts else [files.path("inter")]
    for path in paths:
        if not path.is_file():
            known = ", ".join(datasets_in(files.folder.parent)) or "none"
            raise UserError(f"dataset '{name}': no file {path} (datasets found there: {known})")
    findings = Findings()
    tables = [_read_interactions(path, config, findings) for path in paths]
    read = [table for table in tables if table is not None]
    summary = []
    if parts:
        summary = _sum_up_parts(paths, tables, config, findings)
    elif read and len(read[0].user):
        summary = _summary(paths[0], read[0], findings)
    known = {item for table in read for item in (*table.items, *table.in_histories)}
    if files.path("item").is_file():
        summary += _check_items(files.path("item"), known, config, findings)
    if files.path("user").is_file():
        _read_ids(files.path("user"), config["USER_ID_FIELD"], config, findings)
    return "".join([str(findings), *summary]), findings.errors


def _read_interactions(path: Path, config: Config, findings: Findings) -> Interactions | None:
    fields = Fields.of(config)
    wanted = {fields.user, fields.item}
    types = _read_types(
        path, wanted if config["benchmark_filename"] else wanted | {fields.time}, config, findings
    )
    if types is None:
        return None
    columns = {field: list(types).index(field) for field in fields if field in types}
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    seen: set[str] = set()
    user_of, item_of, times = array("q"), array("q"), array("d")
    numbers, lengths = array("q"), array("q")
    for cells in _read(path, types, config, findings):
        texts = {field: cells.column(column) for field, column in columns.items()}
        nothing = [""] * len(cells.numbers)
        for number, user, item, moment, history in zip(
            cells.numbers.tolist(),
            texts[fields.user],
            texts[fields.item],
            texts.get(fields.time, ["0"] * len(nothing)),
            texts.get(fields.histories, nothing),
            strict=True,
        ):
            if user in MISSING or item in MISSING or not is_number(moment.encode()):
                continue
            tokens = list(filter(None, history.split(config["seq_separator"])))
            seen.update(tokens)
            user_of.append(users.setdefault(user, len(users)))
            item_of.append(items.setdefault(item, len(items)))
            times.append(float(moment))
            numbers.append(number)
            lengths.append(len(tokens))
    arrays = (
        np.frombuffer(values, values.typecode)
        for values in (user_of, item_of, times, numbers, lengths)
    )
    return Interactions(users, items, *arrays, seen)


def _read_types(
    path: Path, wanted: Set[str], config: Config, findings: Findings
) -> dict[str, str] | None:
    """Read the types of the columns; None if lines cannot be split by them."""
    header = read_header(path, config["field_separator"], config["encoding"])
    faults = list(header.faults(wanted, Fields.of(config).types))
    for what, found in faults:
        findings.error(path, what, 1, found)
    readable = len(header.types) == len(header.columns) and wanted <= set(header.fields)
    return header.types if readable and not any(found for _, found in faults) else None


def _read(
    path: Path, types: Mapping[str, str], config: Config, findings: Findings
) -> Iterator[Cells]:
    """Yield the lines that are as wide as the header; what is wrong is noted."""

    def note(line: int, what: str, found: str, bearable: bool) -> None:
        (findings.warn if bearable else findings.error)(path, what, line, found)

    needs, lines = Fields.of(config).needs, 0
    size = path.stat().st_size
    with tqdm(total=size, desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
        for cells in read_cells(path, types, needs, AtomicFiles.of(config), note):
            lines += len(cells.numbers)
            yield cells
            bar.update(len(cells.text))
    if not lines and not findings.errors:
        findings.error(path, "no lines after the header")


def _sum_up_parts(
    paths: list[Path], tables: list[Interactions | None], config: Config, findings: Findings
) -> list[str]:
    """Summarise pre-split files; adds faults that only show among several of them."""
    files, fields = AtomicFiles.of(config), Fields.of(config)
    headers = [read_header(path, files.separator, files.encoding).fields for path in paths]
    for field in (fields.time, fields.histories):
        having = [field in header for header in headers]
        for path, has in zip(paths, having, strict=True):
            if not has and any(having):
                findings.error(path, f"missing field '{field}', which the other parts have", 1)
    with_histories = all(fields.histories in header for header in headers)
    if not with_histories and not all(fields.time in header for header in headers):
        what = f"has neither '{fields.histories}' (histories) nor '{fields.time}'"
        findings.error(paths[0], what, 1)
    if None in tables:
        return []
    if with_histories:
        for path, what in find_padding(paths, files, fields.histories, config["seq_separator"]):
            findings.error(path, what)
    lines, known = [], set()
    for path, table in zip(paths, tables, strict=True):
        alone = table.histories == 0 if with_histories else np.zeros(len(table.user), dtype=bool)
        if not with_histories and path != paths[0]:
            names = np.array(list(table.users), dtype=object)
            alone = ~np.isin(names[table.user], list(known))
        known |= table.users.keys()
        if alone.any():
            findings.warn(path, f"{alone.sum()} lines have no history, and are left out")
        lines.append(_sum_up_part(path, table, with_histories))
    return lines


def _sum_up_part(path: Path, table: Interactions, with_histories: bool) -> str:
    text = f"{path.name}: {len(table.users)} users, {len(table.items)} items, "
    text += f"{len(table.user)} lines"
    if with_histories and len(table.user):
        others = len(table.in_histories - table.items.keys())
        text += f"; history: mean {table.histories.mean():.2f}, longest {table.histories.max()}"
        text += f", {others} items that are no target there"
    return text + "\n"


def _summary(path: Path, table: Interactions, findings: Findings) -> list[str]:
    """Summarise the interactions; adds faults that only show among several of them."""
    order = np.lexsort((table.line, table.time, table.user))
    user, time = table.user[order], table.time[order]
    lengths = np.diff(sequence_offsets(user))
    same_user = user[1:] == user[:-1]
    tied = same_user & (time[1:] == time[:-1])
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
        f"neighbours in a history at the same time: {tied.sum() / pairs:.1%}\n",
    ]


def _find_repeated(path: Path, table: Interactions, findings: Findings) -> None:
    order = np.lexsort((table.line, table.time, table.item, table.user))
    keys = (table.user[order], table.item[order], table.time[order])
    same = np.logical_and.reduce([key[1:] == key[:-1] for key in keys])
    for number in np.sort(table.line[order][1:][same]).tolist():
        findings.warn(path, "same user, item and time as an earlier line", number)


def _check_items(path: Path, known: Set[str], config: Config, findings: Findings) -> list[str]:
    seen = _read_ids(path, config["ITEM_ID_FIELD"], config, findings)
    if seen is None:
        return []
    return [
        f"{path.name}: {len(seen)} items, {len(seen - known)} of them without interactions; "
        f"{len(known - seen)} items of interactions are not in it\n"
    ]


def _read_ids(path: Path, field: str, config: Config, findings: Findings) -> set[str] | None:
    """Read a file with a line for each user or item; returns their tokens."""
    types = _read_types(path, {field}, config, findings)
    if types is None:
        return None
    seen: set[str] = set()
    what = f"{path.suffix.removeprefix('.')} of an earlier line, which counts"
    for cells in _read(path, types, config, findings):
        tokens = cells.column(list(types).index(field))
        for number, token in zip(cells.numbers.tolist(), tokens, strict=True):
            if token in MISSING:
                continue
            if token in seen:
                findings.warn(path, what, number, token)
            seen.add(token)
    return seen
