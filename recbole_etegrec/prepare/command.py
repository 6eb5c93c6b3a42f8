"""`recbole-etegrec prepare`: which kinds of raw data there are, and which arguments each takes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from recbole_etegrec.errors import UserError, nearest
from recbole_etegrec.prepare.amazon import prepare_amazon
from recbole_etegrec.prepare.etegrec import prepare_etegrec
from recbole_etegrec.prepare.table import prepare_csv, prepare_jsonl
from recbole_etegrec.storage.lock import held_output


class Kind(NamedTuple):
    """One kind of raw data: what reads it, the arguments it needs, and those it may have."""

    run: Callable[..., str]
    files: tuple[str, ...]  # needed, and must exist
    optional_files: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


COLUMNS = ("user", "item", "time")
KINDS = {
    "amazon": Kind(prepare_amazon, ("reviews",), ("meta",)),
    "csv": Kind(
        prepare_csv,
        ("input",),
        ("items",),
        COLUMNS,
        ("rating", "item_fields", "separator", "header"),
    ),
    "jsonl": Kind(prepare_jsonl, ("input",), ("items",), COLUMNS, ("rating", "item_fields")),
    "etegrec": Kind(prepare_etegrec, ("train", "valid", "test", "map"), ("embeddings",)),
}


def prepare(kind: Sequence[str], values: Mapping[str, str]) -> str:
    """Make a dataset; returns what was written and left out, as lines of text.

    Args:
        kind: a name of `KINDS`, alone.
        values: the arguments by their names.

    Raises:
        UserError: the kind or an argument is unknown or missing, or the data is not as it says.
    """
    name = kind[0] if kind else ""
    if name not in KINDS:
        known = ", ".join(KINDS)
        raise UserError(f"prepare '{name}': must be one of {known}{nearest(name, KINDS)}")
    chosen = KINDS[name]
    needed = ("out", *chosen.files, *chosen.needed)
    optional = (*chosen.optional_files, *chosen.optional, "overwrite")
    for key in values:
        if key not in needed + optional:
            known = nearest(key, needed + optional)
            raise UserError(f"prepare {name}: unknown argument --{key}{known}")
    missing = [f"--{key}" for key in needed if key not in values]
    if missing:
        others = " ".join(f"[--{key}]" for key in optional)
        raise UserError(f"prepare {name}: {', '.join(missing)} missing (may have {others})")
    arguments: dict[str, object] = {**values, "out": Path(values["out"])}
    arguments["overwrite"] = values.get("overwrite", "False").lower() == "true"
    for key in chosen.files + chosen.optional_files:
        if key in values:
            arguments[key] = Path(values[key])
            if not Path(values[key]).is_file():
                raise UserError(f"prepare {name}: --{key}: no file {values[key]}")
    folder = Path(values["out"]).absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out {folder}: cannot be written ({error.strerror})") from error
    with held_output(folder):
        return chosen.run(**arguments)
