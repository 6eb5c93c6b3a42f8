"""The configuration of a run: RecBole's, with values parsed and checked."""

from recbole_etegrec.config.config import (
    DEFAULT_DATASET,
    DEFAULT_MODEL,
    RECBOLE_PROPERTIES,
    Config,
    Loader,
    find_config_file,
    find_model,
    parse_value,
    properties_dir,
    read_config_files,
    refusals_for_the_user,
)

__all__ = [
    "DEFAULT_DATASET",
    "DEFAULT_MODEL",
    "RECBOLE_PROPERTIES",
    "Config",
    "Loader",
    "find_config_file",
    "find_model",
    "parse_value",
    "properties_dir",
    "read_config_files",
    "refusals_for_the_user",
]
