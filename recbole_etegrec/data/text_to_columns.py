"""Makes binary columns of the text of a dataset: numbers its tokens, filters and sorts it.

All is as RecBole's dataset does it (and `checked_dataset.py`, where that departs from it): ids are
given in the order in which tokens appear in what the filters leave. While text is read, its users
and items are held; afterwards what grows with the interactions are arrays of 16 bytes each, and 8
more while they are sorted.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv
from recbole.data.dataset import Dataset

from recbole_etegrec.config import Config
from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.atomic_header import read_header
from recbole_etegrec.data.columns import FILTERS, INTERACTIONS, ITEMS, USERS
from recbole_etegrec.data.sequences import run_indices
from recbole_etegrec.errors import UserError

_BLOCK = 2**26  # bytes of text
_ROWS = 2**22  # interactions handled at once
_EXACT = 2**53  # whole numbers below are the same as floating point numbers
_PADDING = "[PAD]"


class FractionError(Exception):
    """The times of a dataset are not all whole numbers, so binary columns cannot have them."""


class _Rows(NamedTuple):
    """Interactions, and the tokens that their numbers stand for."""

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    user_tokens: list[str]
    item_tokens: list[str]

    def of(self, kept: np.ndarray) -> "_Rows":
        """Those of some rows, with numbers in the order in which they appear there."""
        users, user_tokens = _appearing(self.users[kept], self.user_tokens)
        items, item_tokens = _appearing(self.items[kept], self.item_tokens)
        return _Rows(users, items, self.times[kept], user_tokens, item_tokens)


def write_columns(config: Config, path: Path, folder: Path) -> dict[str, Any]:
    """Write the columns of a text that has been checked.

    Returns:
        Digests of their identity as `Identity` has them, and a sentence on what each filter left
        out.

    Raises:
        FractionError: times are not all whole numbers.
        UserError: the filters leave nothing.
    """
    rows = _read(config, path)
    rows, warnings = _filtered(config, rows)
    order = np.lexsort((rows.times, rows.users))  # stable: ties as in the file
    counts = np.bincount(rows.users, minlength=len(rows.user_tokens))
    offsets = np.append(0, np.cumsum(counts))
    items = rows.items[order] + np.int32(1)
    times = rows.times[order]
    user_tokens, item_tokens = rows.user_tokens, rows.item_tokens
    del rows, order
    users = pa.array([_PADDING, *user_tokens], pa.large_string())
    _write(folder / INTERACTIONS, item=pa.array(items), time=pa.array(times))
    _write(folder / USERS, token=users, end=pa.array(offsets))
    _write(folder / ITEMS, token=pa.array([_PADDING, *item_tokens], pa.large_string()))
    return {
        "interactions": _interactions_digest(users, items, offsets),
        "users": _digest_of_words([_PADDING, *user_tokens]),
        "warnings": warnings,
    }


# Reading --------------------------------------------------------------------------------------


def _read(config: Config, path: Path) -> _Rows:
    """All lines of a text."""
    try:
        return _read_as(config, path, pa.int64())
    except pa.ArrowInvalid:  # such as 978300760.0
        try:
            rows = _read_as(config, path, pa.float64())
        except pa.ArrowInvalid as error:
            raise FractionError(" ".join(str(error).split())) from error
    times = rows.times
    if not all(_are_whole(times[start : start + _ROWS]) for start in range(0, len(times), _ROWS)):
        raise FractionError("binary columns have whole numbers as times")
    return rows._replace(times=times.astype(np.int64))


def _are_whole(times: np.ndarray) -> bool:
    return bool(((times == np.floor(times)) & (np.abs(times) < _EXACT)).all())


def _read_as(config: Config, path: Path, kind: pa.DataType) -> _Rows:
    user, item, time = (config[key] for key in ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"))
    kinds = {user: pa.string(), item: pa.string(), time: kind}
    table = pa.Table.from_batches(list(_blocks(config, path, kinds)))
    times, (users, user_tokens) = table[time].to_numpy(), _numbered(table[user])
    table = table.select([item])  # the users' text is not needed any more
    items, item_tokens = _numbered(table[item])
    return _Rows(users, items, times, user_tokens, item_tokens)


def _numbered(tokens: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """Numbers of tokens in the order in which they first come, and the tokens of the numbers."""
    parts = tokens.dictionary_encode().chunks  # they share one dictionary
    return np.concatenate([part.indices for part in parts]), parts[0].dictionary.to_pylist()


def _blocks(config: Config, path: Path, types: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
    files = AtomicFiles.of(config)
    encoding = "utf8" if files.encoding.startswith("utf-8") else files.encoding
    names = read_header(path, files.separator, config["encoding"]).fields
    return csv.open_csv(
        path,
        csv.ReadOptions(block_size=_BLOCK, column_names=names, skip_rows=1, encoding=encoding),
        csv.ParseOptions(delimiter=files.separator, quote_char=False),
        csv.ConvertOptions(column_types=types, include_columns=list(types), null_values=[]),
    )


# Filters ------------------------------------------------------------------------------------------


def _filtered(config: Config, rows: _Rows) -> tuple[_Rows, list[str]]:
    """What the filters leave, and a sentence on each that left something out."""
    warnings = []
    duplicates, *intervals = FILTERS
    chosen = [key for key in intervals if config[key] not in (None, "[0,inf)")]
    steps = [
        (config[duplicates], f"{duplicates} ({config[duplicates]})", _without_duplicates),
        (chosen, " and ".join(f"{key} ({config[key]})" for key in chosen), _by_counts),
    ]
    for wanted, why, apply in steps:
        if not wanted:
            continue
        before = len(rows.users)
        kept = apply(config, rows)
        if len(kept) == 0:
            name = config["dataset"]
            raise UserError(f"dataset {name}: no interaction is left, by {why}")
        if len(kept) < before:
            left_out = before - len(kept)
            warnings.append(f"{left_out} of {before} interactions are left out, by {why}")
        rows = rows.of(kept)
    return rows, warnings


def _without_duplicates(config: Config, rows: _Rows) -> np.ndarray:
    """Rows of a user's first or last interaction with each item, in the order of time."""
    order = np.argsort(rows.times, kind="stable")
    pairs = rows.users[order] * np.int64(len(rows.item_tokens)) + rows.items[order]
    if config["rm_dup_inter"] == "last":
        last = np.unique(pairs[::-1], return_index=True)[1]
        return order[np.sort(len(pairs) - 1 - last)]
    return order[np.sort(np.unique(pairs, return_index=True)[1])]


def _by_counts(config: Config, rows: _Rows) -> np.ndarray:
    """Rows of users and items that have as many of them as they should, in their order."""
    kept = np.arange(len(rows.users))
    columns = [
        (ids, len(tokens), Dataset._parse_intervals_str(None, config[key]))
        for ids, tokens, key in (
            (rows.users, rows.user_tokens, "user_inter_num_interval"),
            (rows.items, rows.item_tokens, "item_inter_num_interval"),
        )
    ]
    while True:
        fits = np.ones(len(kept), dtype=bool)
        for ids, number, intervals in columns:
            if intervals:
                counts = np.bincount(ids[kept], minlength=number)
                fits &= Dataset._within_intervals(None, counts, intervals)[ids[kept]]
        if fits.all():
            return kept
        kept = kept[fits]


def _appearing(ids: np.ndarray, tokens: list[str]) -> tuple[np.ndarray, list[str]]:
    """Number what appears in the order in which it does."""
    first = np.full(len(tokens), len(ids))
    for end in range(len(ids), 0, -_ROWS):
        start = max(end - _ROWS, 0)
        first[ids[start:end][::-1]] = np.arange(end - 1, start - 1, -1)  # the last one counts
    order = np.argsort(first, kind="stable")[: np.count_nonzero(first < len(ids))]
    number = np.zeros(len(tokens), dtype=np.int32)
    number[order] = np.arange(len(order), dtype=np.int32)
    return number[ids], [tokens[place] for place in order.tolist()]


# Writing --------------------------------------------------------------------------------------


def _write(path: Path, **columns: pa.Array) -> None:
    """One record batch, so that each column is one array in the file."""
    longest = max(map(len, columns.values()))
    assert all(len(column) == longest for column in columns.values())
    batch = pa.record_batch(list(columns.values()), names=list(columns))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _interactions_digest(users: pa.Array, items: np.ndarray, offsets: np.ndarray) -> str:
    """What `identity.py` takes of interactions in memory, a part at a time."""
    by_name = pc.sort_indices(users.slice(1)).to_numpy().astype(np.int64)
    named = _digest_of_words(_parts_of(users.slice(1), by_name))
    digest = hashlib.sha256(named.encode())
    lengths = np.diff(offsets)[by_name]
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths) // _ROWS)) + 1
    parts = np.split(np.arange(len(by_name)), cuts)
    for ranks in parts:
        digest.update(np.repeat(ranks.astype(np.int64), lengths[ranks]).tobytes())
    for ranks in parts:
        places = run_indices(offsets[by_name[ranks] + 1], lengths[ranks])
        digest.update(items[places].astype(np.int64).tobytes())
    for ranks in parts:  # all are of one part of the split
        digest.update(bytes(8 * int(lengths[ranks].sum())))
    return digest.hexdigest()


def _parts_of(words: pa.Array, order: np.ndarray) -> Iterator[str]:
    for start in range(0, len(order), _ROWS):
        yield from words.take(pa.array(order[start : start + _ROWS])).to_pylist()


def _digest_of_words(words: Iterable[str]) -> str:
    """As `identity.py` has it."""
    digest = hashlib.sha256()
    for number, word in enumerate(words):
        digest.update(("\n" * bool(number) + word).encode())
    return digest.hexdigest()
