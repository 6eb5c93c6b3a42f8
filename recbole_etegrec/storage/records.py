"""Records that runs, exports and comparisons leave: read in one place, and never trusted.

A record that is damaged is refused in one line that names its file. What it must hold is said by a
shape: a type or None; several shapes as a tuple, one of which it must have; ``[shape]``, a list;
``{"key": shape, "other?": shape, "*": shape}``, a mapping that has ``key``, may have ``other``, and
whose other values have the last shape, if one is said.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from recbole_etegrec.errors import UserError

NUMBER = (int, float)
_MISSING = object()
_UNREADABLE = (OSError, ValueError, OverflowError, RecursionError, yaml.YAMLError)


def read_json(path: Path, shape: Any = dict) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it cannot be read, or does not have the shape.
    """
    return _read(path, json.loads, shape)


def read_yaml(path: Path, shape: Any = dict) -> Any:
    """What a YAML file holds, as :func:`read_json`.

    Raises:
        UserError: it cannot be read, or does not have the shape.
    """
    return _read(path, yaml.safe_load, shape)


def _read(path: Path, parse: Callable[[str], Any], shape: Any) -> Any:
    try:
        return checked(parse(path.read_text("utf-8")), shape)
    except _UNREADABLE as error:
        raise damaged(path, error) from error


def read_lines(path: Path, shape: Any = dict) -> list[Any]:
    """The records in a file of JSON lines; a last one that is still being written is left out.

    Raises:
        UserError: the file cannot be read, or a line does not have the shape.
    """
    number = 0
    try:
        lines = path.read_text("utf-8").splitlines(keepends=True)
        records = []
        for number, line in enumerate(lines, start=1):  # noqa: B007
            if line.endswith("\n"):
                records.append(checked(json.loads(line), shape))
        return records
    except _UNREADABLE as error:
        raise damaged(path, error, f", line {number}" if number else "") from error


def checked(value: Any, shape: Any) -> Any:
    """The value, if it has the shape.

    Raises:
        ValueError: it has not; the message says where.
    """
    if fault := _misfit(value, shape):
        raise ValueError(fault)
    return value


def damaged(path: Path, error: Exception, where: str = "") -> UserError:
    """The refusal of a damaged file."""
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
    return UserError(f"{path}{where}: damaged ({reason}); bring back a copy of it, or make it anew")


def _misfit(value: Any, shape: Any, name: str = "it") -> str:
    """What is wrong with a value, or nothing."""
    if isinstance(shape, tuple):
        faults = [_misfit(value, one, name) for one in shape]
        return "" if "" in faults else faults[0]
    kind = type(shape) if isinstance(shape, (list, dict)) or shape is None else shape
    if value is _MISSING:
        return f"no {name}"
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return f"{name} is a {type(value).__name__}"
    faults = (_misfit(inner, part, where) for where, inner, part in _parts(value, shape, name))
    return next(filter(None, faults), "")


def _parts(value: Any, shape: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Name, value and shape of each part of a value."""
    if isinstance(shape, list):
        for inner in value:
            yield f"what {name} lists", inner, shape[0]
    elif isinstance(shape, dict):
        words = {key.removesuffix("?"): part for key, part in shape.items()}
        for key in shape.keys() - {"*"} - value.keys():
            if not key.endswith("?"):
                yield f"'{key}'", _MISSING, shape[key]
        for key, inner in value.items():
            if key in words or "*" in words:
                yield f"'{key}'", inner, words.get(key, words.get("*"))
