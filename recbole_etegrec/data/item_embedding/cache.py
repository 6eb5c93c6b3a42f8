"""A folder of made vectors, each file under the manifest of what it was made of."""

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from recbole_etegrec.data.dataset import WholeSequenceDataset
from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.atomic import atomic_file
from recbole_etegrec.storage.digests import bytes_digest

logger = logging.getLogger(__name__)


def cached(folder: Path, manifest: dict[str, Any], make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array stored under a manifest, made and stored where there is none.

    Of several runs at a time that want it one makes it, and the others wait.

    Raises:
        UserError: it cannot be stored, and other processes count on reading it.
    """
    text, path = json.dumps(manifest, sort_keys=True), cache_path(folder, manifest)
    with _lock(path):
        vectors = _read(path, text)
        if vectors is not None:
            logger.info("item embeddings (%s): read from %s", manifest["source"], path)
            return vectors
        vectors = make()
        _write(path, vectors, text)
    return vectors


def cache_path(folder: Path, manifest: dict[str, Any]) -> Path:
    """The file that `cached` keeps under a manifest."""
    text = json.dumps(manifest, sort_keys=True)
    return folder / f"{bytes_digest(text.encode())[:16]}.safetensors"


def _lock(path: Path) -> AbstractContextManager:
    """A lock beside a file; none where nothing can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        with lock:
            return lock
    except OSError:
        return nullcontext()


def _write(path: Path, vectors: np.ndarray, manifest: str) -> None:
    try:
        metadata = {"manifest": manifest, "sha256": bytes_digest(vectors.tobytes())}
        with atomic_file(path) as fresh:
            save_file({"embedding": vectors}, fresh, metadata=metadata)
    except (OSError, SafetensorError) as error:
        problem = f"embedding_cache: {path.parent} cannot be written ({error})"
        if PartialState().num_processes > 1:
            raise UserError(
                f"{problem}: several processes share the vectors there; choose another"
            ) from error
        logger.warning("%s, going on", problem)


def interactions_digest(dataset: WholeSequenceDataset) -> str:
    """What tells these training interactions from others: the items, user by user."""
    digest = hashlib.sha256()
    for block in dataset.sequences.blocks():
        digest.update(block.items.tobytes())
    digest.update(dataset.sequences.offsets.tobytes())
    return digest.hexdigest()


def _read(path: Path, manifest: str) -> np.ndarray | None:
    """The array in a file of :func:`cached`; None where there is none, or one that is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "np") as file:
            metadata, vectors = file.metadata() or {}, file.get_tensor("embedding")
        if metadata == {"manifest": manifest, "sha256": bytes_digest(vectors.tobytes())}:
            return vectors
    except (OSError, SafetensorError):
        pass
    logger.warning("embedding_cache: %s is damaged, its vectors are made anew", path)
    return None
