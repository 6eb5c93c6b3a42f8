"""What `recbole-etegrec doctor` reports: versions, devices, workarounds, models and datasets."""

import importlib
import textwrap
from collections.abc import Iterable
from pathlib import Path

import torch

from recbole_etegrec.config import RECBOLE_PROPERTIES
from recbole_etegrec.config.compat import WORKAROUNDS, versions
from recbole_etegrec.config.datasets import datasets_in
from recbole_etegrec.model import MODELS


def report(data_path: str = "dataset/") -> str:
    """The whole report as text; nothing that is absent makes it fail."""
    found = {name: version or "absent" for name, version in versions().items()}
    baselines = len(list(RECBOLE_PROPERTIES.glob("model/*.yaml")))
    bundled = datasets_in(RECBOLE_PROPERTIES.parent / "dataset_example")
    sections = {
        "versions": _aligned((found | {"ray": _ray()}).items()),
        "devices": _devices(),
        "worked around in RecBole": _aligned(WORKAROUNDS),
        "models": [", ".join(MODELS), f"{baselines} of RecBole"],
        "datasets": [
            f"in RecBole: {', '.join(bundled)}",
            f"in {Path(data_path).absolute()}: {', '.join(datasets_in(Path(data_path))) or 'none'}",
        ],
    }
    return "".join(
        f"{title}\n" + textwrap.indent("\n".join(lines), "  ") + "\n"
        for title, lines in sections.items()
    )


def _aligned(pairs: Iterable[tuple[str, str]]) -> list[str]:
    pairs = list(pairs)
    width = max(len(left) for left, _ in pairs) + 2
    return [f"{left:{width}}{right}" for left, right in pairs]


def _devices() -> list[str]:
    devices = [f"cpu, {torch.get_num_threads()} threads"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            f"cuda:{index}, {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        )
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices


def _ray() -> str:
    """Whether `ray.tune` can be imported; only RecBole's own quick start needs it."""
    try:
        importlib.import_module("ray.tune")
        return "works"
    except ModuleNotFoundError as error:
        return "absent" if error.name == "ray" else f"broken: {error} (not needed)"
    except Exception as error:
        return f"broken: {error} (not needed)"
