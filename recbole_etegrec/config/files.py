"""Configuration files: where they are, and what is read of them. Nothing heavy is imported."""

import re
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from recbole_etegrec.errors import UserError, nearest

# Found, and not imported, which takes seconds.
_FOUND = find_spec("recbole")
_RECBOLE = Path(next(iter(_FOUND.submodule_search_locations)) if _FOUND else "recbole")
RECBOLE_PROPERTIES = _RECBOLE / "properties"
DEFAULT_DATASET = "ml-100k"


class Loader(yaml.SafeLoader):
    """YAML without objects that also reads `1e-3` as a number, as RecBole's files expect."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def require_recbole() -> None:
    """Refuse to work without RecBole, which from Python 3.12 on needs a command of its own.

    Raises:
        UserError: it is not installed.
    """
    if _FOUND is None:
        raise UserError("RecBole is not installed: pip install --no-deps recbole==1.2.1")


def properties_dir() -> Path:
    """`properties/` inside the installed package, or beside it in a source checkout."""
    package = Path(__file__).resolve().parents[1]
    candidates = (package / "properties", package.parent / "properties")
    return next(path for path in candidates if path.is_dir())


@cache
def recbole_models() -> tuple[str, ...]:
    """The names of RecBole's models: the classes that are named as their file is."""
    files = sorted((_RECBOLE / "model").glob("*_recommender/*.py"))
    return tuple(
        name
        for file in files
        for name in re.findall(r"^class (\w+)", file.read_text("utf-8"), re.MULTILINE)
        if name.lower() == file.stem
    )


def find_config_file(file: str) -> str:
    """`file`, or the overlay of that name in `properties/` where there is no such file."""
    try:
        if Path(file).is_file():
            return file
    except (OSError, ValueError):  # such a name is no file's
        return file
    shipped = properties_dir() / f"{file.removesuffix('.yaml').removeprefix('properties/')}.yaml"
    return str(shipped) if shipped.is_file() else file


def overlays() -> list[str]:
    """The names of the config files in `properties/`, as `--config_files` takes them."""
    folder = properties_dir()
    return [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]


def read_config_files(files: Iterable[str]) -> dict[str, Any]:
    """What the files say, later ones winning.

    Raises:
        UserError: a file cannot be read, or holds no ``key: value`` lines.
    """
    values: dict[str, Any] = {}
    for file in files:
        values.update(_read_mapping(find_config_file(file)))
    return values


def _read_mapping(file: str) -> dict[str, Any]:
    try:
        values = yaml.load(Path(file).read_text("utf-8"), Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"config file {file}: not valid YAML{where}") from error
    except OSError as error:
        name = file.removesuffix(".yaml").removeprefix("properties/")
        hint = nearest(name, overlays()) if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"config file {file}: {error.strerror}{hint}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"config file {file}: not UTF-8 text") from error
    except (ValueError, RecursionError, OverflowError) as error:  # a day such as 2024-02-31
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"config file {file}: not valid YAML ({reason})") from error
    if values is not None and not isinstance(values, dict):
        kind = type(values).__name__
        raise UserError(f"config file {file}: expected lines 'key: value', found a {kind}")
    return values or {}
