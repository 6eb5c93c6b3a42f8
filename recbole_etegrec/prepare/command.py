"""`recbole-etegrec prepare`: makes a dataset of one of the kinds of raw data."""

from collections.abc import Callable, Mapping
from pathlib import Path

from recbole_etegrec.errors import UserError, nearest
from recbole_etegrec.prepare.amazon import prepare_amazon
from recbole_etegrec.prepare.etegrec import prepare_etegrec
from recbole_etegrec.prepare.kinds import KINDS
from recbole_etegrec.prepare.sequences import prepare_sequences
from recbole_etegrec.prepare.table import prepare_csv, prepare_jsonl
from recbole_etegrec.storage.lock import held_output

READERS: dict[str, Callable[..., str]] = {
    "amazon": prepare_amazon,
    "csv": prepare_csv,
    "jsonl": prepare_jsonl,
    "sequences": prepare_sequences,
    "etegrec": prepare_etegrec,
}


def prepare(name: str, values: Mapping[str, str]) -> str:
    """Make a dataset; returns what was written and left out, as lines of text.

    Args:
        name: of `KINDS`.
        values: the arguments by their names.

    Raises:
        UserError: the kind or an argument is unknown or missing, or the data is not as it says.
    """
    if name not in KINDS:
        known = ", ".join(KINDS)
        raise UserError(f"prepare '{name}': must be one of {known}{nearest(name, KINDS)}")
    kind = KINDS[name]
    for key in values:
        if key not in kind.arguments:
            known = nearest(key, kind.arguments)
            raise UserError(f"prepare {name}: unknown argument --{key}{known}")
    missing = [f"--{key}" for key in ("out", *kind.needed) if key not in values]
    if missing:
        others = " ".join(f"[--{key}]" for key in (*kind.optional, "overwrite"))
        raise UserError(f"prepare {name}: {', '.join(missing)} missing (may have {others})")
    arguments: dict[str, object] = {**values, "out": Path(values["out"])}
    arguments["overwrite"] = values.get("overwrite", "False").lower() == "true"
    for key in sorted(kind.files.intersection(values)):
        arguments[key] = Path(values[key])
        if not Path(values[key]).is_file():
            raise UserError(f"prepare {name}: --{key}: no file {values[key]}")
    folder = Path(values["out"]).absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out {folder}: cannot be written ({error.strerror})") from error
    with held_output(folder):
        return READERS[name](**arguments)
