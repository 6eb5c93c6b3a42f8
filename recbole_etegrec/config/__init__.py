"""The configuration of a run: RecBole's, with values parsed and checked.

The names below are imported on first use, so that `keys` and `models` need nothing heavy.
"""

from importlib import import_module
from typing import Any

__all__ = [
    "DEFAULT_DATASET",
    "DEFAULT_MODEL",
    "RECBOLE_PROPERTIES",
    "Config",
    "Loader",
    "UnknownKeyError",
    "find_config_file",
    "find_recbole_model",
    "is_ours",
    "parse_value",
    "properties_dir",
    "read_config_files",
    "refusals_for_the_user",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = "models" if name == "is_ours" else "config"
    return getattr(import_module(f"{__name__}.{room}"), name)
