"""What was trained, as files: safetensors and JSON, no pickle."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from recbole_etegrec.errors import UserError
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.run_directory import atomic_directory

_WEIGHTS, _DESCRIPTION = "model.safetensors", "model.json"


def trained_state(model: ETEGRecLlama) -> dict[str, torch.Tensor]:
    """A copy of all parameters and of the code table, on the CPU."""
    state = model.state_dict()
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def restore(model: ETEGRecLlama, state: dict[str, torch.Tensor]) -> None:
    """Put a state back; the trie follows the code table."""
    model.load_state_dict(state)
    model.codes.build_trie()


def save_model(state: dict[str, torch.Tensor], description: dict, path: Path) -> None:
    """Write a state into a folder; the previous one stays until the new one is whole."""
    with atomic_directory(path) as folder:
        save_file(state, folder / _WEIGHTS)
        (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2), encoding="utf-8")


def load_model(model: ETEGRecLlama, path: Path) -> None:
    """Read a folder written by :func:`save_model` into a model of the same config.

    Raises:
        UserError: if there is no such folder.
    """
    if not (path / _WEIGHTS).is_file():
        raise UserError(f"run_dir: {path} holds no {_WEIGHTS}: was the run saved and finished?")
    restore(model, load_file(path / _WEIGHTS))
