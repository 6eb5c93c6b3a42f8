"""What a run that somebody sent may not do to those who use it: execute, fetch or write.

A run that is trained does what its keys say, for whoever started it gave them. Here are the keys
that are not followed when a run is used, unless the user gives them anew.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants

from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.run_directory import RunDirectory

# RecBole unpickles the files that these name, or writes them; `download` is an address.
_NOT_FOLLOWED = {
    "download": None,
    "dataset_save_path": None,
    "dataloaders_save_path": None,
    "save_dataset": False,
    "save_dataloaders": False,
    "log_wandb": False,
}


def config_to_use(directory: RunDirectory, changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The keys of a run that is to be used.

    Args:
        changes: keys that its user has given, which are followed.

    Raises:
        UserError: `directory` is not a run's, or its keys have RecBole execute code.
    """
    recorded, given = directory.read_config(), dict(changes or {})
    values = {**recorded, **_NOT_FOLLOWED, **given}
    # The classes of two of RecBole's models evaluate a key, and unpickle a file beside the data.
    executes = {
        "teacher": not str(values.get("teacher", "name")).isidentifier(),
        "n_cate": values.get("model") == "LDiffRec" and values.get("n_cate") not in (None, 1),
    }
    for key, broken in executes.items():
        if broken and key not in given:
            raise UserError(
                f"run_dir {directory.path}: its config.yaml has {key} ({values[key]}), by which "
                f"RecBole would execute what a file says; if you trust it, give --{key} yourself"
            )
    return values


@contextmanager
def offline(when: bool = True) -> Iterator[None]:
    """Have models of the hub taken from this machine alone, as ``HF_HUB_OFFLINE`` has it."""
    former = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = former or when
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = former
