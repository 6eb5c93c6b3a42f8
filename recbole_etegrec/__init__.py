"""ETEGRec with a decoder-only LLaMA, for RecBole.

The names below are imported on first use: none of them is needed to answer ``--help``.
"""

import logging
from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = [
    "Catalogue",
    "Config",
    "ETEGRecModel",
    "UserError",
    "add_items",
    "explain",
    "export_run",
    "load_data",
    "load_exported",
    "load_run",
    "objective_function",
    "recommend",
    "remove_items",
    "run",
]

_MODULES = {
    "Catalogue": "inference",
    "Config": "config",
    "ETEGRecModel": "inference.hub",
    "UserError": "errors",
    "add_items": "inference.new_items",
    "explain": "inference",
    "export_run": "inference.export",
    "load_data": "runs.parts",
    "load_exported": "inference.export",
    "load_run": "runs.load",
    "objective_function": "quick_start",
    "recommend": "inference",
    "remove_items": "inference.new_items",
    "run": "quick_start",
}

# peft imports bitsandbytes where there is one, and it then warns that CPUs could be faster.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
