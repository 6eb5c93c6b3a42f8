"""Which datasets there are, on this machine or to be fetched. Nothing heavy is imported."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from recbole_etegrec.config.files import DEFAULT_DATASET, RECBOLE_PROPERTIES, properties_dir
from recbole_etegrec.errors import UserError, nearest


def datasets_in(folder: Path) -> list[str]:
    """Names of the datasets under `folder`: its sub-folders ``X`` that hold an ``X*.inter``."""
    return sorted({file.parent.name for file in folder.glob("*/*.inter") if _is_named(file)})


def _is_named(file: Path) -> bool:
    return file.name.split(".")[0] == file.parent.name.split(".")[0]


@cache
def archives() -> dict[str, str]:
    """The addresses of RecBole's list of datasets, by name."""
    return yaml.safe_load((RECBOLE_PROPERTIES / "dataset" / "url.yaml").read_text("utf-8"))


def check_dataset(chosen: Mapping[str, Any]) -> None:
    """Refuse a dataset that has no folder here and is none that can be fetched.

    Args:
        chosen: keys of a run; none, where the run has chosen before.

    Raises:
        UserError: there is no such dataset.
    """
    if not chosen:
        return
    name = str(chosen.get("dataset", DEFAULT_DATASET))
    parent = Path(str(chosen.get("data_path") or "dataset/"))
    shipped = {path.stem for path in properties_dir().glob("dataset/*.yaml")}
    known = {DEFAULT_DATASET, *shipped, *archives()}
    if name in known or chosen.get("download") or (parent / name).is_dir():
        return
    there = datasets_in(parent)
    found = f" (datasets found there: {', '.join(there)})" if there else ""
    hint = nearest(name, known.union(there))
    raise UserError(
        f"dataset '{name}': no file {parent.absolute() / name / name}.inter{found}{hint}"
    )
