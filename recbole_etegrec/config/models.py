"""The names of the plugin's models, and which of them stand on the defaults of which.

The classes are in ``recbole_etegrec.model``; a configuration is made, and a wrong key refused,
without them.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from recbole_etegrec.errors import UserError

if TYPE_CHECKING:
    from recbole.config import Config

# The model whose defaults those of a model stand on, if any.
STANDS_ON: dict[str, str | None] = {
    "ETEGRecLlama": None,
    "ETEGRec": "ETEGRecLlama",
    "TIGER": "ETEGRec",
    "Ensemble": "ETEGRecLlama",  # of runs: it is joined, not trained
}
ENSEMBLE = "Ensemble"
TRAINED = tuple(name for name in STANDS_ON if name != ENSEMBLE)


def is_ours(config: "Config | Mapping[str, Any]") -> bool:
    """Whether a configuration, or what a run has kept of it, is of a model of the plugin."""
    return "model" in config and config["model"] in STANDS_ON


def check_own(config: Mapping[str, Any], run_dir: object) -> None:
    """Refuse a run that is not of a model of the plugin.

    Raises:
        UserError: it is of a model of RecBole.
    """
    if not is_ours(config):
        raise UserError(
            f"run_dir {run_dir}: a run of {config.get('model')}; name a run of {', '.join(TRAINED)}"
        )


def lineage(model: str) -> list[str]:
    """A model of the plugin and those that it stands on, the first of them first."""
    names = []
    name: str | None = model
    while name is not None:
        names.insert(0, name)
        name = STANDS_ON[name]
    return names
