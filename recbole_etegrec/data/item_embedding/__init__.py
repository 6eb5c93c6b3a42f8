"""Item embeddings: the vectors that the tokenizer turns into codes.

A source sees the training interactions alone, or none. Each gives one row an item, in RecBole's
internal item order, row 0 being the padding item; this package sets them side by side. What the
vectors become is unknown here.
"""

from collections.abc import Callable

import numpy as np
import torch

from recbole_etegrec.config import Config
from recbole_etegrec.data.dataset import WholeSequenceDataset
from recbole_etegrec.data.item_embedding.collaborative import collaborative_embedding
from recbole_etegrec.data.item_embedding.file import file_embedding
from recbole_etegrec.data.item_embedding.sasrec import sasrec_embedding
from recbole_etegrec.data.item_embedding.text import check_text_model, text_embedding
from recbole_etegrec.errors import UserError

ITEM_EMBEDDINGS: dict[str, Callable[[Config, WholeSequenceDataset], np.ndarray]] = {
    "collaborative": collaborative_embedding,
    "file": file_embedding,
    "sasrec": sasrec_embedding,
    "text": text_embedding,
}


def load_item_embedding(config: Config, dataset: WholeSequenceDataset) -> np.ndarray:
    """Make, or read from the cache, the embeddings named by ``item_embedding``.

    Several sources are fused: each is standardised, then their columns are set side by side.

    Args:
        config: keys ``item_embedding`` and those of the sources.
        dataset: the training part.

    Returns:
        float32 ``[items, width]``, of each source centred and scaled to unit mean square; row 0
        (padding) is zero.

    Raises:
        UserError: if a source cannot give a finite vector for every item.
    """
    parts = []
    for name in embedding_sources(config):
        vectors = ITEM_EMBEDDINGS[name](config, dataset)
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise UserError(
                f"item_embedding ({name}): {len(bad)} of {len(vectors) - 1} items have a vector "
                f"with NaN or infinity, first {dataset.field2id_token[dataset.iid_field][bad[0]]}"
            )
        parts.append(standardised(vectors))
    if config["device"].type == "cuda" and torch.cuda.is_initialized():
        # What the sources took is free again, and is not what training takes.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(config["device"])
    return np.concatenate(parts, axis=1)


def embedding_width(config: Config, dataset: WholeSequenceDataset) -> int:
    """The width that :func:`load_item_embedding` gives; what takes long to make is not made."""
    width = 0
    for name in embedding_sources(config):
        trained = name == "collaborative" or (name == "sasrec" and not config["sasrec_run"])
        if trained:
            width += config["semantic_hidden_size"]
        else:
            width += ITEM_EMBEDDINGS[name](config, dataset).shape[1]
    return width


def check_item_embedding(config: Config) -> None:
    """Look whether what the sources are made with can be had, before any data is read.

    Raises:
        UserError: it cannot.
    """
    if "text" in embedding_sources(config):
        check_text_model(config["text_model"])


def embedding_sources(config: Config) -> list:
    """The sources that ``item_embedding`` names: it is one, or a list of them."""
    chosen = config["item_embedding"]
    return list(chosen) if isinstance(chosen, (list, tuple)) else [chosen]


def standardised(vectors: np.ndarray) -> np.ndarray:
    """Centre the items' vectors ``[items, width]`` and scale them to unit mean square."""
    known = vectors[1:]
    known = known - known.mean(axis=0)
    known /= max(float(np.sqrt(np.mean(known**2))), 1e-12)
    return np.concatenate([np.zeros_like(vectors[:1]), known]).astype(np.float32)
