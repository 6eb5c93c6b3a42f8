"""The configuration of a run: RecBole's, with values parsed and checked.

The names below are imported on first use, so that `keys` and `models` need nothing heavy.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "DEFAULT_DATASET": "files",
    "DEFAULT_MODEL": "values",
    "RECBOLE_PROPERTIES": "files",
    "Config": "config",
    "Loader": "files",
    "UnknownKeyError": "values",
    "find_config_file": "files",
    "find_recbole_model": "config",
    "is_ours": "models",
    "parse_value": "values",
    "properties_dir": "files",
    "read_config_files": "files",
    "refusals_for_the_user": "config",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
