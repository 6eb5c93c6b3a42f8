"""Writes atomic files; where their content comes from is unknown here."""

import mmap
from array import array
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from recbole_etegrec.errors import UserError
from recbole_etegrec.prepare.records import BadLines


class Counts(NamedTuple):
    """What an ``.inter`` file holds, and how many interactions were left out as repeated."""

    users: int
    items: int
    interactions: int
    repeated: int

    def __str__(self) -> str:
        return (
            f"{self.users} users, {self.items} items, {self.interactions} interactions"
            f" ({self.repeated} repeated ones left out)"
        )


def refuse_existing(folder: Path, suffixes: Iterable[str], overwrite: bool) -> None:
    """Refuse to replace files of `folder` unless told to.

    Raises:
        UserError: one of them exists, and `overwrite` is false.
    """
    for suffix in suffixes:
        path = folder / f"{folder.absolute().name}{suffix}"
        if path.exists() and not overwrite:
            raise UserError(f"{path}: exists; give --overwrite to replace it, or another --out")


def clean(value: Any) -> str:
    """Make the text of one cell: one line, no tab, no quotation mark at its beginning.

    pandas would read a cell that begins with a quotation mark up to the next one, over lines.
    """
    return " ".join(str(value).replace("\0", "").split()).lstrip('" ')


def _open(path: Path, fields: Mapping[str, str]) -> TextIO:
    """Open a new atomic file and write its header; `fields` maps names to RecBole's types."""
    lines = path.open("w", encoding="utf-8", errors="replace", newline="\n")
    lines.write("\t".join(f"{name}:{kind}" for name, kind in fields.items()) + "\n")
    return lines


class InteractionWriter:
    """Takes interactions in any order and writes ``X.inter`` in order of time.

    RecBole keeps times as float32, in which moments of two minutes are one, and leaves such ties
    in the order of the file: so the file has the order of the exact times. Equal times keep the
    order they came in. Of equal user, item and time the first is kept.

    The lines wait in a file; what stays in memory are 24 bytes a line, and users and items.
    """

    def __init__(self, path: Path, rated: bool) -> None:
        self._path = path
        self._rated = rated
        self._waiting = path.with_suffix(".waiting")
        self._lines = self._waiting.open("wb")
        self._offsets, self._hashes, self._times = array("q", [0]), array("Q"), array("d")
        self.users: set[str] = set()
        self.items: set[str] = set()

    def add(self, user: str, item: str, time: float, rating: str = "") -> None:
        """Take one interaction; the texts are those that `clean` gives."""
        cells = [user, item, rating] if self._rated else [user, item]
        moment = f"{time:.15g}"
        line = ("\t".join([*cells, moment]) + "\n").encode(errors="replace")
        key = f"{user}\t{item}\t{moment}".encode(errors="replace")
        self._lines.write(line)
        self._offsets.append(self._offsets[-1] + len(line))
        self._hashes.append(int.from_bytes(blake2b(key, digest_size=8).digest(), "big"))
        self._times.append(time)
        self.users.add(user)
        self.items.add(item)

    def finish(self) -> Counts:
        """Write the file.

        Raises:
            UserError: there are no interactions.
        """
        self._lines.close()
        if not self._times:
            raise UserError(f"{self._path.name}: no interaction was found, nothing is written")
        _, first = np.unique(np.frombuffer(self._hashes, np.uint64), return_index=True)
        first.sort()
        order = first[np.argsort(np.frombuffer(self._times)[first], kind="stable")]
        fields = {"user_id": "token", "item_id": "token"}
        fields |= {"rating": "float"} if self._rated else {}
        _open(self._path, {**fields, "timestamp": "float"}).close()
        with (
            self._waiting.open("rb") as waiting,
            mmap.mmap(waiting.fileno(), 0, access=mmap.ACCESS_READ) as text,
            self._path.open("ab") as lines,
        ):
            lines.writelines(text[self._offsets[i] : self._offsets[i + 1]] for i in order.tolist())
        self._waiting.unlink()
        repeated = len(self._times) - len(order)
        return Counts(len(self.users), len(self.items), len(order), repeated)


class ItemWriter:
    """Writes ``X.item``: of the items that have an interaction, the first record of each."""

    def __init__(self, path: Path, fields: Mapping[str, str], wanted: set[str]) -> None:
        self._path = path
        self._lines = _open(path, fields)
        self._wanted = wanted
        self._written: set[str] = set()
        self._unknown = 0

    def add(self, cells: list[str]) -> None:
        """Take the cells of one item, its token first."""
        item = cells[0]
        if item not in self._wanted:
            self._unknown += 1
        elif item not in self._written:
            self._written.add(item)
            self._lines.write("\t".join(cells) + "\n")

    def finish(self, source: Path, bad: BadLines) -> list[str]:
        """Complete the file; returns what was written and what was left out of `source`.

        Raises:
            UserError: none of the items has an interaction.
        """
        self._lines.close()
        if not self._written:
            raise UserError(f"{source}: none of its items has an interaction, {bad}")
        without = len(self._wanted) - len(self._written)
        return [
            f"{source}: {bad}, {self._unknown} items without an interaction left out",
            f"{self._path.name}: {len(self._written)} items, {without} more are not in {source}",
        ]
