"""The splits that ETEGRec published, as atomic files whose leave-one-out split is theirs.

Their training file holds a row for each prefix of a history; whole histories are put together
again. Their embeddings become what ``item_embedding: file`` reads.
"""

import json
from pathlib import Path

import numpy as np

from recbole_etegrec.data.cells import MISSING
from recbole_etegrec.errors import UserError
from recbole_etegrec.prepare.atomic import InteractionWriter, clean, refuse_existing
from recbole_etegrec.prepare.records import BadLines, read_records
from recbole_etegrec.storage.atomic import staged

PADDING = "[PAD]"

Rows = list[tuple[list[str], str]]  # history and target


def prepare_etegrec(
    out: Path,
    train: Path,
    valid: Path,
    test: Path,
    map: Path,
    embeddings: Path | None = None,
    overwrite: bool = False,
) -> str:
    """Write ``X.inter`` to the folder `out` named X, and ``X.npy`` with ``X.items``.

    The place in a history is its time. Users for whom the split would be another are left out and
    named; histories may have been cut to their last items in the files.

    Raises:
        UserError: files exist already, cannot be read, or do not belong together.
    """
    name = out.absolute().name
    suffixes = [".inter", ".npy", ".items"] if embeddings else [".inter"]
    refuse_existing(out, suffixes, overwrite)
    index = _read_map(map)
    with staged(out) as folder:
        bad = BadLines()
        prefixes, validation, tests = (_rows_of_users(file, bad) for file in (train, valid, test))
        writer = InteractionWriter(folder / f"{name}.inter", rated=False)
        broken: dict[str, list[str]] = {}
        for user in dict.fromkeys([*prefixes, *validation, *tests]):
            rows = [part.get(user, []) for part in (prefixes, validation, tests)]
            fault = _fault(*rows)
            if fault:
                broken.setdefault(fault, []).append(user)
                continue
            for place, item in enumerate(_whole(*rows)):
                writer.add(user, item, place)
        if not writer.items:
            raise UserError(
                f"train {train}: no history could be put together, {bad}{_told(broken)}"
            )
        unknown = sorted(writer.items - index.keys())
        if unknown:
            raise UserError(f"map {map}: misses {len(unknown)} items, first {unknown[0]}")
        if embeddings:
            _write_embeddings(folder / f"{name}.npy", embeddings, index)
        counts = writer.finish()
    left_out = _told(broken) or "; all users have the split of the files"
    return f"{name}.inter: {counts}, {bad}{left_out}\n"


def _read_map(path: Path) -> dict[str, int]:
    try:
        index = json.loads(path.read_text("utf-8"))
        return {clean(token): int(place) for token, place in index.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"map {path}: must be JSON of item tokens to numbers") from error


def _rows_of_users(path: Path, bad: BadLines) -> dict[str, Rows]:
    """Each user's rows in the order of their histories' lengths, equal ones as in the file."""
    rows: dict[str, Rows] = {}
    for number, record in read_records(path, bad):
        user, history = clean(record.get("user_id", "")), record.get("inter_history")
        target = clean(record.get("target_id", ""))
        if user in MISSING or target in MISSING or not isinstance(history, list):
            bad.add(number, f"no user_id, target_id or inter_history ({path.name})")
        else:
            rows.setdefault(user, []).append(([clean(item) for item in history], target))
    if not rows:
        raise UserError(f"{path}: no row has user_id, target_id and inter_history, {bad}")
    for of_user in rows.values():
        of_user.sort(key=lambda row: len(row[0]))
    return rows


def _whole(prefixes: Rows, validation: Rows, tests: Rows) -> list[str]:
    """Put the whole history together: the first row, then each further row's target."""
    rows = [*prefixes, *validation, *tests]
    return [*rows[0][0], *(target for _, target in rows)]


def _fault(prefixes: Rows, validation: Rows, tests: Rows) -> str:
    """Say why leave-one-out on a user's whole history differs from the files' split, if it does."""
    if len(validation) != 1 or len(tests) != 1:
        return "not one row each in valid and test"
    whole = _whole(prefixes, validation, tests)
    if len(whole) < 4:
        return "fewer than 4 interactions"
    rows = [*prefixes, *validation, *tests]
    for end, (history, _) in enumerate(rows, start=len(rows[0][0])):
        if not history or whole[max(end - len(history), 0) : end] != history:
            return "histories that do not continue each other"
    return ""


def _told(broken: dict[str, list[str]]) -> str:
    return "".join(
        f"; {len(users)} users left out for {fault}: {', '.join(users[:5])}"
        + (", ..." if len(users) > 5 else "")
        for fault, users in broken.items()
    )


def _write_embeddings(path: Path, source: Path, index: dict[str, int]) -> None:
    """Write the vectors in the order of the map's items, without padding.

    The file has a row for each item, or one more at the beginning for padding.
    """
    try:
        rows = np.load(source, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"embeddings {source}: no .npy of numbers") from error
    tokens = sorted((token for token in index if token != PADDING), key=index.__getitem__)
    places = np.array([index[token] for token in tokens])
    if (places != np.arange(len(tokens)) + places[0]).any():
        raise UserError("map: its numbers must be those of 0 or 1 onwards, each once")
    padded = len(rows) - len(tokens)
    if rows.ndim != 2 or rows.dtype.kind not in "fiu" or padded not in (0, 1):
        raise UserError(
            f"embeddings {source}: shape {rows.shape} of {rows.dtype}, need a row of numbers for "
            f"each of {len(tokens)} items (and perhaps one for padding before them)"
        )
    np.save(path, np.asarray(rows[padded:], dtype=np.float32))
    path.with_suffix(".items").write_text("\n".join(tokens) + "\n", encoding="utf-8")
