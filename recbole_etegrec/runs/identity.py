"""What a run keeps so that it can be used later: whose items its weights are of, and their vectors.

``identity.json`` has the tokens in the order of their ids, ``item_embedding.safetensors`` what
items are known by. So a run is used on data that may have changed, and no vectors are made for it.
"""

import logging
from dataclasses import replace

import numpy as np
import torch
from recbole.data.dataset import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from recbole_etegrec.config import Config
from recbole_etegrec.data import ItemContent, ItemVectors, WholeSequenceDataset, item_vectors
from recbole_etegrec.data.identity import Changes, Identity
from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.atomic import as_readable_as_its_folder, atomic_file
from recbole_etegrec.storage.digests import tensor_digest
from recbole_etegrec.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)

_IDENTITY, _VECTORS = "identity.json", "item_embedding.safetensors"
_VECTORS_OF = ("embedding", "mean", "scale")


def write_identity(
    directory: RunDirectory, identity: Identity, vectors: ItemVectors | None = None
) -> None:
    """Keep the identity of a run that begins to train, and the vectors of its items, if any.

    Raises:
        UserError: they cannot be written.
    """
    try:
        if vectors is not None:
            tensors = _tensors(vectors)
            identity = replace(identity, vectors=tensor_digest(tensors))
            with atomic_file(directory.path / _VECTORS) as fresh:
                save_file(tensors, fresh)
                as_readable_as_its_folder(fresh)
        directory.write_json(_IDENTITY, identity.record())
    except (OSError, SafetensorError) as error:
        raise UserError(f"run_dir {directory.path}: cannot be written ({error})") from error


def read_identity(directory: RunDirectory) -> Identity:
    """The identity of a run.

    Raises:
        UserError: it has none, or it is damaged.
    """
    path = directory.path / _IDENTITY
    if not path.is_file():
        raise UserError(
            f"run_dir {directory.path}: has no {_IDENTITY}, by which its items are known: "
            "a run that was not saved has none, and one of an earlier version must be trained anew"
        )
    try:
        return Identity.from_record(directory.read_json(_IDENTITY))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}): bring back a copy of it") from error


def read_vectors(directory: RunDirectory, identity: Identity) -> ItemVectors:
    """The vectors of a run's items.

    Raises:
        UserError: they are not there, or damaged.
    """
    path = directory.path / _VECTORS
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if tensor_digest(tensors) != identity.vectors:
            raise ValueError("it is not as it was written")
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return ItemVectors(*(arrays[name] for name in _VECTORS_OF), ItemContent.from_record(arrays))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged ({reason}): bring back a copy of it") from error


def vectors_to_train_with(
    config: Config, directory: RunDirectory, dataset: WholeSequenceDataset, trained_on, resume: bool
) -> ItemVectors:
    """The vectors that a run began with, where it goes on; else they are made.

    Args:
        dataset: the whole of it.
        trained_on: its training part.

    Raises:
        UserError: the run goes on, but its data have changed since it began.
    """
    begun = directory.last.exists() or directory.previous.exists()
    if not resume or not (begun or (directory.path / _IDENTITY).is_file()):
        return item_vectors(config, trained_on)
    identity = read_identity(directory)
    if replace(identity, vectors=None) != dataset.identity:
        raise UserError(
            f"resume: {dataset.dataset_name} has changed since the run in {directory.path} began "
            f"({difference(identity, dataset.identity)}): bring back the data, or start a new run"
        )
    return read_vectors(directory, identity)


def items_gone(identity: Identity, changes: Changes, dataset: Dataset) -> np.ndarray:
    """The ids of a run's items that its data, read with `known_ids`, no longer have.

    What has changed is warned of, and is a sentence in ``dataset.changed``; empty if nothing has.

    Raises:
        UserError: the data have other fields, so that ids are not those of the run.
    """
    item = dataset.iid_field
    for name, tokens in {item: [], **identity.tokens}.items():
        found = dataset.field2id_token.get(name, ())
        if not tokens or list(found[: len(tokens)]) != tokens:
            raise UserError(
                f"dataset: '{name}' of {dataset.dataset_name} cannot be given the ids that it had "
                "when the run was trained: use the fields and the data of then"
            )
    gone = changes.gone[item]
    gone = changes.gone[item] = gone[gone < len(identity.tokens[item])]  # not those added later
    others = dataset.identity.interactions != identity.interactions
    dataset.changed = changes.sentence(dataset, others)
    if dataset.changed:
        logger.warning("%s", dataset.changed)
    return gone


def difference(then: Identity, now: Identity) -> str:
    """What has changed of some data, in words."""
    for name, tokens in then.tokens.items():
        if (found := now.tokens.get(name)) != tokens:
            same = sorted(found or ()) == sorted(tokens)
            return f"{name}: {'another order of' if same else 'other'} tokens"
    same = then.interactions == now.interactions
    return "users in another order" if same else "other interactions"


def _tensors(vectors: ItemVectors) -> dict[str, torch.Tensor]:
    arrays = {name: getattr(vectors, name) for name in _VECTORS_OF}
    if vectors.content is not None:
        arrays |= vectors.content.record()
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}
