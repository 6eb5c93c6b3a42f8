"""Items of which a source knows nothing get random vectors: equal ones would all collide."""

import logging

import numpy as np

logger = logging.getLogger(__name__)


def fill_cold_items(
    vectors: np.ndarray, cold: np.ndarray, rng: np.random.Generator, why: str
) -> None:
    """Draw the vectors of cold items, in place, at the scale of the others.

    Args:
        vectors: of all items ``[N, width]``; row 0 is the padding item.
        cold: ids of the cold items; their vectors are zero.
        why: what these items lack, for the log.
    """
    if len(cold) == 0:
        return
    logger.info(
        "item embeddings: %d of %d items %s; each gets a random vector",
        len(cold),
        len(vectors) - 1,
        why,
    )
    known = np.delete(vectors, [0, *cold], axis=0)
    scale = known.std() if known.size else 1.0
    vectors[cold] = rng.normal(0, scale, (len(cold), vectors.shape[1]))
