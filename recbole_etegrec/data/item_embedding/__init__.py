"""Item embeddings: the vectors that the tokenizer turns into codes.

A source sees the training interactions alone, or none. Each gives one row an item, in RecBole's
internal item order, row 0 being the padding item; this package sets them side by side. What the
vectors become is unknown here.
"""

from typing import NamedTuple

import numpy as np
import torch

from recbole_etegrec.config import Config
from recbole_etegrec.data.dataset import WholeSequenceDataset
from recbole_etegrec.data.item_embedding.content import (
    ItemContent,
    content_fields,
    content_sources,
    make_content,
    width_of,
)
from recbole_etegrec.data.item_embedding.predicted import predict
from recbole_etegrec.data.item_embedding.sources import ITEM_EMBEDDINGS
from recbole_etegrec.data.item_embedding.text import check_text_model
from recbole_etegrec.errors import UserError

FROM_INTERACTIONS = ("collaborative", "sasrec")  # sources that know no item without them


__all__ = [
    "ITEM_EMBEDDINGS",
    "ItemContent",
    "ItemVectors",
    "check_item_embedding",
    "content_sources",
    "embedding_sources",
    "embedding_width",
    "item_vectors",
    "make_content",
    "standardise",
    "standardised",
    "width_of",
]


class ItemVectors(NamedTuple):
    """What items are known by.

    Attributes:
        embedding: standardised, of all items ``[N, width]``; row 0, the padding item's, is zero.
        mean: what was taken from the vectors that the sources gave ``[width]``.
        scale: by what they were then divided ``[width]``.
        content: what is known of the items besides; None where ``item_content`` is empty.
    """

    embedding: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    content: ItemContent | None = None


def item_vectors(config: Config, dataset: WholeSequenceDataset) -> ItemVectors:
    """Make, or read from the cache, the embeddings named by ``item_embedding``.

    Several sources are fused: each is standardised, then their columns are set side by side. What
    a source of interactions would give items without any is predicted from their content.

    Args:
        config: keys ``item_embedding`` and those of the sources.
        dataset: the training part.

    Returns:
        float32, of each source centred and scaled to unit mean square.

    Raises:
        UserError: if a source cannot give a finite vector for every item.
    """
    parts, content = [], make_content(config, dataset)
    for name in embedding_sources(config):
        vectors = ITEM_EMBEDDINGS[name](config, dataset)
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise UserError(
                f"item_embedding ({name}): {len(bad)} of {len(vectors) - 1} items have a vector "
                f"with NaN or infinity, first {dataset.field2id_token[dataset.iid_field][bad[0]]}"
            )
        if content is not None and name in FROM_INTERACTIONS:
            _predict_unseen(vectors, content.vectors, dataset)
        parts.append(standardised(vectors))
    if config["device"].type == "cuda" and torch.cuda.is_initialized():
        # What the sources took is free again, and is not what training takes.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(config["device"])
    joined = (np.concatenate(part, axis=-1) for part in zip(*(p[:3] for p in parts), strict=True))
    return ItemVectors(*joined, content)


def _predict_unseen(
    vectors: np.ndarray, content: np.ndarray, dataset: WholeSequenceDataset
) -> None:
    """Predict the vectors of items that training does not show, in place."""
    unseen = dataset.sequences.counts(len(vectors)) == 0
    unseen[0] = False
    seen = ~unseen
    seen[0] = False
    if unseen.any() and seen.any():
        vectors[unseen] = predict(content[seen], vectors[seen], content[unseen])


def embedding_width(config: Config, dataset: WholeSequenceDataset) -> int:
    """The width of what :func:`item_vectors` gives; what takes long to make is not made."""
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
    if content_sources(config):
        content_fields(config)
    if "text" in (*embedding_sources(config), *content_sources(config)):
        check_text_model(config["text_model"])


def embedding_sources(config: Config) -> list:
    """The sources that ``item_embedding`` names: it is one, or a list of them."""
    chosen = config["item_embedding"]
    return list(chosen) if isinstance(chosen, (list, tuple)) else [chosen]


def standardised(vectors: np.ndarray) -> ItemVectors:
    """Centre the items' vectors ``[items, width]`` and scale them to unit mean square."""
    mean = vectors[1:].mean(axis=0)
    scale = max(float(np.sqrt(np.mean((vectors[1:] - mean) ** 2))), 1e-12)
    scale = np.full_like(mean, scale)
    known = standardise(vectors[1:], mean, scale)
    return ItemVectors(np.concatenate([np.zeros_like(known[:1]), known]), mean, scale)


def standardise(vectors: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Standardise vectors ``[n, width]`` as those were that have this mean and scale."""
    return ((vectors - mean) / scale).astype(np.float32)
