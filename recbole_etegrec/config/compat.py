"""What RecBole 1.2.1 needs on a current numpy, scipy, pandas and torch.

Imported before any part of RecBole is used. Only what is missing is added: where the stack still
has the old name, nothing changes.
"""

import platform
import warnings
from importlib import metadata
from typing import NamedTuple

import numpy as np
from scipy.sparse import dok_matrix

from recbole_etegrec import __version__
from recbole_etegrec.config.files import require_recbole

PACKAGES = (
    "recbole",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
)


class Workaround(NamedTuple):
    """One thing of RecBole 1.2.1 that does not fit the current stack."""

    what: str
    why: str


WORKAROUNDS = (
    Workaround("numpy names np.float, np.bool, np.long, ...", "removed in numpy 1.24 and 2"),
    Workaround("Config.compatibility_settings not run", "uses np.float_, removed in numpy 2"),
    Workaround("scipy dok_matrix._update", "removed in scipy 1.13; graph models call it"),
    Workaround("recbole.quick_start not imported", "needs ray.tune, broken on numpy 2"),
    Workaround(
        "best model kept as safetensors",
        "RecBole pickles it, and torch.load refuses that since 2.6",
    ),
    Workaround("config values parsed, not evaluated", "RecBole passes them to eval"),
    Workaround("anomaly detection of autograd turned off again", "importing SINE turns it on"),
    Workaround("device chosen by accelerate", "RecBole sets CUDA_VISIBLE_DEVICES from gpu_id"),
    Workaround("own collector of rankings", "items scored -inf can hit; Gini, coverage crash"),
    Workaround("logs and TensorBoard files in the run directory", "RecBole writes to ./log*"),
    Workaround("interactions of one time kept in order", "rm_dup_inter sorts them in any order"),
    Workaround("pandas below 3", "fillna(inplace=True) on a column has no effect in pandas 3"),
)

_NUMPY_NAMES = {
    "bool": np.bool_,
    "int": np.int64,
    "float": np.float64,
    "complex": np.complex128,
    "object": np.object_,
    "str": np.str_,
    "long": np.int64,
    "unicode": np.str_,
}


def _add_missing_names() -> None:
    for name, value in _NUMPY_NAMES.items():
        if name not in vars(np):
            setattr(np, name, value)
    if not hasattr(dok_matrix, "_update"):
        dok_matrix._update = lambda self, entries: self._dict.update(entries)


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages a result depends on; None if absent."""
    found: dict[str, str | None] = {
        "recbole-etegrec": __version__,
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


require_recbole()
_add_missing_names()
# Deprecations inside RecBole are nothing its user can act on.
warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
