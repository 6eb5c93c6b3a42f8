"""What was trained, and where the run stands, as files: safetensors and JSON, no pickle.

``best/`` is the model to use. ``last/`` holds that and all that is needed to go on: optimizer
states and a :class:`Progress`. Random numbers need no state, for those of a step follow from the
seed and the step's number.
"""

import json
import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from recbole_etegrec.errors import UserError
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.storage.atomic import atomic_directory
from recbole_etegrec.storage.digests import damaged_file, write_checksums
from recbole_etegrec.storage.records import NUMBER, read_json
from recbole_etegrec.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)

State = dict[str, torch.Tensor]

_WEIGHTS, _DESCRIPTION = "model.safetensors", "model.json"
_OPTIMIZERS, _PROGRESS = "optimizers.safetensors", "progress.json"
_BEST = "best"
_DESCRIBED = {
    "phase": str,
    "codes": str,
    "frozen": (str, None),
    "valid_result": {"*": NUMBER},
}


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        phase: its name in ``SCHEDULES``; empty before the first.
        index: epochs of the phase that are over.
        step: steps taken of the epoch after those.
        trained: whether all of them are, and only the evaluation is left.
        stale: evaluations in a row without a better score.
        epochs_done: epochs over the training sequences that are over, in all phases.
        first: the number of the phase's first epoch.
        rate_steps: steps the learning rate of each module has made.
        epoch: sums and counts over the steps of the present epoch.
        lines: of ``metrics.jsonl``.
        scaler: state of the fp16 gradient scaler.
        frozen: the digest of the weights that never learn.
        vectors: the digest of the item embeddings.
    """

    phase: str = ""
    index: int = 0
    step: int = 0
    trained: bool = False
    stale: int = 0
    epochs_done: int = 0
    first: int = 0
    rate_steps: dict[str, int] = field(default_factory=dict)
    epoch: dict = field(default_factory=dict)
    lines: int = 0
    scaler: dict | None = None
    frozen: str | None = None
    vectors: str | None = None

    @property
    def number(self) -> int:
        """The present epoch's, as records have it: each kind of loader has epochs of its own."""
        return self.first + self.index

    def enter(self, phase: str, first: int) -> None:
        """Begin a phase."""
        self.phase, self.first, self.index, self.stale = phase, first, 0, 0

    def __str__(self) -> str:
        if not self.phase:
            return "the beginning"
        place = "before its evaluation" if self.trained else f"step {self.step}"
        return f"epoch {self.number + 1} ({self.phase}), {place}"


# The model ----------------------------------------------------------------------------------------


def trained_state(model: ETEGRecLlama, parts: tuple[str, ...] = ("",)) -> State:
    """A copy of all that is trained and of the code table, on the CPU; every process takes part.

    Weights of a pretrained decoder that never learn are not in it.

    Args:
        parts: beginnings of the names wanted.
    """
    return {
        name: _whole(tensor)
        for name, tensor in model.state_dict().items()
        if name.startswith(parts) and name not in model.frozen_names
    }


@torch.no_grad()
def restore(model: ETEGRecLlama, state: State) -> None:
    """Put a state, or part of one, back; the trie follows the code table.

    Raises:
        ValueError: the state has what the model has not.
    """
    own = model.state_dict()
    if unknown := state.keys() - own.keys():
        raise ValueError(f"the state is of another model: {sorted(unknown)}")
    for name, tensor in state.items():
        _fill(own[name], tensor)
    model.codes.build_trie()


def save_model(state: State, description: dict, path: Path) -> None:
    """Write a state into a folder; the previous one stays until the new one is whole."""
    with atomic_directory(path) as folder:
        _write_model(folder, state, description)
        write_checksums(folder)


def read_model(path: Path) -> tuple[State, dict]:
    """The state and the description in a folder written by :func:`save_model`.

    Raises:
        UserError: if there is no such folder, or it is damaged.
    """
    if not (path / _WEIGHTS).is_file():
        raise UserError(f"run_dir: {path} holds no {_WEIGHTS}: was the run saved and finished?")
    if damaged := damaged_file(path, _WEIGHTS, _DESCRIPTION):
        raise UserError(
            f"run_dir: {path} is damaged ({damaged} is missing or not as it was written): bring "
            "back a copy, or train the run anew"
        )
    try:
        return load_file(path / _WEIGHTS), read_json(path / _DESCRIPTION, _DESCRIBED)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"run_dir: {path} is damaged ({error})") from error


def load_model(model: ETEGRecLlama, path: Path) -> None:
    """Read a folder written by :func:`save_model` into a model of the same config, to be used.

    Its tokenizer is then the one that gave the items their codes.

    Raises:
        UserError: if there is no such folder, or the model has another pretrained decoder, other
            parts or other shapes.
    """
    state, description = read_model(path)
    check_frozen(model, description["frozen"])
    own = model.state_dict()
    other = state.keys() ^ (own.keys() - model.frozen_names)
    if other:
        raise UserError(
            f"run_dir: {path} and a model of these keys differ in parts, first {min(other)}: keep "
            "the parts of the run, such as its backbone and item_head"
        )
    for name, tensor in state.items():
        if own[name].shape != tensor.shape:
            raise UserError(
                f"run_dir: {name} of {path} is {list(tensor.shape)}, with these keys and files "
                f"{list(own[name].shape)}: keep the dataset, its filters and the sizes of the run"
            )
    restore(model, state)
    model.tokenizer_of_record.give(model.tokenizer)
    model.ranker.take(description.get("ranking", {}))


def check_frozen(model: ETEGRecLlama, expected: str | None) -> None:
    """Refuse to put what was trained on top of other weights than it was trained with.

    Raises:
        UserError: the weights that never learn have another digest.
    """
    if model.frozen_digest != expected:
        raise UserError(
            f"base_model: its weights (digest {model.frozen_digest}) are not those that the run "
            f"was trained with ({expected}): use the same model, precision and versions"
        )


def check_vectors(now: str, then: str | None) -> None:
    """Refuse to go on with other item embeddings than codes and codebooks were made of.

    Raises:
        UserError: their digests differ.
    """
    if then is not None and now != then:
        raise UserError(
            f"item_embedding: the vectors (digest {now}) are not those that the run began with "
            f"({then}): bring back the same file or embedding_cache, or start a new run"
        )


def _write_model(folder: Path, state: State, description: dict) -> None:
    save_file(state, folder / _WEIGHTS)
    (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2), encoding="utf-8")


# The run ------------------------------------------------------------------------------------------


def optimizer_state(optimizers: dict[str, torch.optim.Optimizer]) -> State:
    """What optimizers know of each parameter, by module, number and name; on the CPU."""
    return {
        f"{module}.{number}.{name}": _whole(torch.as_tensor(value))
        for module, optimizer in optimizers.items()
        for number, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
    }


@torch.no_grad()
def restore_optimizers(optimizers: dict[str, torch.optim.Optimizer], state: State) -> None:
    """Put back what :func:`optimizer_state` gave."""
    for module, optimizer in optimizers.items():
        optimizer.state.clear()
        on_device = optimizer.defaults.get("fused")  # it counts its steps there
        for number, parameter in enumerate(_parameters(optimizer)):
            prefix = f"{module}.{number}."
            for key in [key for key in state if key.startswith(prefix)]:
                value = state[key].clone()
                if value.shape == parameter.shape:
                    like = torch.empty_like(parameter, dtype=value.dtype)
                    _fill(like, value)
                    value = like
                elif value.dtype == torch.int64:  # a plain number: 8-bit optimizers count so
                    value = value.item()
                elif value.ndim or on_device:
                    value = value.to(parameter.device)
                optimizer.state[parameter][key.removeprefix(prefix)] = value


def save_last(
    run_dir: RunDirectory, model: State, optimizers: State, progress: Progress, codes: str
) -> None:
    """Write ``last/``, with the best model so far; the one before is kept as ``previous/``."""
    with atomic_directory(run_dir.last, keep=run_dir.previous) as folder:
        _write_model(folder, model, {"codes": codes})
        save_file(optimizers, folder / _OPTIMIZERS)
        (folder / _PROGRESS).write_text(json.dumps(asdict(progress), indent=2), "utf-8")
        if run_dir.best.is_dir():
            # A copy, not a link: what damages one file must leave the other checkpoint whole.
            shutil.copytree(run_dir.best, folder / _BEST)
        write_checksums(folder)


def load_last(
    run_dir: RunDirectory,
) -> tuple[State, State, Progress, tuple[State, dict] | None] | None:
    """The newest whole checkpoint of a run, or None if it has none.

    Returns:
        States of the model and the optimizers, where the run stands, and the best model of then.

    Raises:
        UserError: it has checkpoints, but none is whole, or they are of another version.
    """
    damaged = []
    for folder in (run_dir.last, run_dir.previous):
        if not folder.is_dir():
            continue
        if broken := _broken_file(folder):
            logger.warning("checkpoint %s: %s is damaged", folder, broken)
            damaged.append(str(folder / broken))
            continue
        progress = _read_progress(folder)
        best = read_model(folder / _BEST) if (folder / _BEST).is_dir() else None
        state, optimizers = load_file(folder / _WEIGHTS), load_file(folder / _OPTIMIZERS)
        return state, optimizers, progress, best
    if damaged:
        raise UserError(f"resume: no checkpoint is whole (damaged: {', '.join(damaged)})")
    return None


def _read_progress(folder: Path) -> Progress:
    values = json.loads((folder / _PROGRESS).read_text("utf-8"))
    if unknown := values.keys() - vars(Progress()).keys():
        raise UserError(
            f"resume: {folder} is of another version of recbole-etegrec (its {_PROGRESS} has "
            f"{', '.join(sorted(unknown))}): go on with that one, or start a new run"
        )
    return Progress(**values)


def drop_damaged(run_dir: RunDirectory) -> None:
    """Delete a damaged ``last/``, lest it take the place of a whole ``previous/``."""
    if run_dir.last.is_dir() and _broken_file(run_dir.last):
        shutil.rmtree(run_dir.last)


def _broken_file(folder: Path) -> str | None:
    """The first file of a checkpoint that is missing or not as it was written."""
    return damaged_file(folder, _WEIGHTS, _DESCRIPTION, _OPTIMIZERS, _PROGRESS)


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU, of all shards where the tensor is sharded."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu().clone()


def _fill(tensor: torch.Tensor, value: torch.Tensor) -> None:
    if isinstance(tensor, DTensor):
        value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements)
    tensor.copy_(value)
