"""The best weights of a model of RecBole, as ``best/``: safetensors and JSON, no pickle.

RecBole's own checkpoint is a pickle: to read one is to run what it says. What a model keeps beside
its parameters (counts, similarities, neighbours) is plain data around tensors: its tensors go to
the file of weights, and the data to the JSON, with their names in it.
"""

import json
from typing import Any

import numpy as np
import scipy.sparse
import torch
from recbole.model.abstract_recommender import AbstractRecommender
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from recbole_etegrec.errors import TrainingError, UserError
from recbole_etegrec.storage.atomic import atomic_directory
from recbole_etegrec.storage.digests import damaged_file, write_checksums
from recbole_etegrec.storage.run_directory import RunDirectory

_WEIGHTS, _OTHERS = "model.safetensors", "model.json"
_MODEL, _MORE = "state.", "other."  # what the names of tensors begin with
_UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError)


def save_best(model: AbstractRecommender, run_dir: RunDirectory) -> None:
    """Write the weights of a model, and what else it has learned, to ``best/``.

    Raises:
        OSError: they cannot be written.
        TrainingError: the model keeps what is no plain data.
    """
    tensors = {_MODEL + name: value for name, value in model.state_dict().items()}
    others = _packed(model.other_parameter(), _MORE, tensors)
    whole = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    with atomic_directory(run_dir.best) as fresh:
        save_file(whole, fresh / _WEIGHTS)
        (fresh / _OTHERS).write_text(json.dumps(others), "utf-8")
        write_checksums(fresh)


def load_best(model: AbstractRecommender, run_dir: RunDirectory, device: torch.device) -> None:
    """Put back what :func:`save_best` wrote; some trainers save nothing, and the model stays.

    Raises:
        UserError: it is damaged, or of another model.
    """
    if not run_dir.best.exists():
        return
    if damaged := damaged_file(run_dir.best, _WEIGHTS, _OTHERS):
        raise UserError(
            f"run_dir {run_dir.path}: best/ is damaged ({damaged} is missing or not as it was "
            "written): bring back a copy, or train the run anew"
        )
    try:
        tensors = load_file(run_dir.best / _WEIGHTS, device=str(device))
        others = json.loads((run_dir.best / _OTHERS).read_text("utf-8"))
        state = [name for name in tensors if name.startswith(_MODEL)]
        model.load_state_dict({name.removeprefix(_MODEL): tensors[name] for name in state})
        known = getattr(model, "other_parameter_name", [])
        values = _unpacked(others, tensors)
        model.load_other_parameter({name: values[name] for name in values if name in known})
    except (*_UNREADABLE, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"run_dir {run_dir.path}: best/ is damaged, or of another model ({reason}): keep the "
            "dataset and the sizes of the run, or train it anew"
        ) from error


def _packed(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """A value as plain data; its tensors are put into `tensors`, under names below `name`."""
    if isinstance(value, nn.Module):
        return {"kind": "module"}  # its weights are in the model's state
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"kind": "tensor", "name": name}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
        return {"kind": "matrix" if isinstance(value, np.matrix) else "array", "name": name}
    if scipy.sparse.issparse(value):
        rows = value.tocsr()
        parts = (rows.data, rows.indices, rows.indptr)
        packed = [_packed(part, f"{name}.{number}", tensors) for number, part in enumerate(parts)]
        return {"kind": "sparse", "format": value.format, "shape": rows.shape, "parts": packed}
    if isinstance(value, dict):
        pairs = [(_plain(key), _packed(v, f"{name}.{key}", tensors)) for key, v in value.items()]
        return {"kind": "dict", "pairs": pairs}
    if isinstance(value, (list, tuple)):
        items = [_packed(v, f"{name}.{number}", tensors) for number, v in enumerate(value)]
        return {"kind": type(value).__name__, "items": items}
    if isinstance(value, (np.generic, str, int, float, type(None))):
        return {"kind": "value", "value": _plain(value)}
    raise TrainingError(f"{name}: a {type(value).__name__} cannot be kept without a pickle")


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _unpacked(packed: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    """What :func:`_packed` was given; modules come back as None."""
    kind = packed["kind"]
    if kind == "tensor":
        return tensors[packed["name"]]
    if kind in ("array", "matrix"):
        array = tensors[packed["name"]].cpu().numpy()
        return np.asmatrix(array) if kind == "matrix" else array
    if kind == "sparse":
        parts = tuple(_unpacked(part, tensors) for part in packed["parts"])
        rows = scipy.sparse.csr_matrix(parts, shape=packed["shape"])
        return rows.asformat(packed["format"])
    if kind == "dict":
        found = ((key, value) for key, value in packed["pairs"] if value["kind"] != "module")
        return {key: _unpacked(value, tensors) for key, value in found}
    if kind in ("list", "tuple"):
        items = [_unpacked(item, tensors) for item in packed["items"]]
        return items if kind == "list" else tuple(items)
    return packed.get("value")
