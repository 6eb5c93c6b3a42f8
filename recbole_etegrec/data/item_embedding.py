"""Item embeddings: the vectors that the tokenizer turns into codes.

A source sees the training interactions alone. Each gives one row an item, in RecBole's internal
item order, row 0 being the padding item.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy import sparse
from scipy.sparse.linalg import svds
from tqdm import tqdm

from recbole_etegrec.config import Config
from recbole_etegrec.data.dataset import WholeSequenceDataset, sequence_offsets
from recbole_etegrec.errors import UserError

logger = logging.getLogger(__name__)


def load_item_embedding(config: Config, dataset: WholeSequenceDataset) -> np.ndarray:
    """Make, or read from the cache, the embeddings named by ``item_embedding``.

    Args:
        config: keys ``item_embedding`` and those of the source.
        dataset: the training part.

    Returns:
        float32 ``[items, semantic_hidden_size]``, centred and scaled to unit mean square; row 0
        (padding) is zero.

    Raises:
        UserError: if the source cannot give a finite vector for every item.
    """
    vectors = ITEM_EMBEDDINGS[config["item_embedding"]](config, dataset)
    known = vectors[1:]
    known = known - known.mean(axis=0)
    known /= max(float(np.sqrt(np.mean(known**2))), 1e-12)
    return np.concatenate([np.zeros_like(vectors[:1]), known]).astype(np.float32)


def collaborative_embedding(config: Config, dataset: WholeSequenceDataset) -> np.ndarray:
    """Truncated SVD of the items' positive pointwise mutual information (PPMI).

    Items that follow each other within ``cooccurrence_window`` steps of a training sequence
    co-occur, weighted by one over their distance. Cached in ``embedding_cache`` under a manifest
    of the training interactions and the keys used.
    """
    items = dataset.inter_feat[dataset.iid_field].numpy()
    offsets = sequence_offsets(dataset.inter_feat[dataset.uid_field].numpy())
    manifest = {
        "source": "collaborative: PPMI, SVD, rows at unit length",
        "interactions": hashlib.sha256(items.tobytes() + offsets.tobytes()).hexdigest(),
        "items": int(dataset.item_num),
        "semantic_hidden_size": config["semantic_hidden_size"],
        "cooccurrence_window": config["cooccurrence_window"],
        "seed": config["seed"],
    }
    return _cached(
        Path(config["embedding_cache"]),
        manifest,
        lambda: _collaborative(config, items, offsets, dataset.item_num),
    )


def _collaborative(
    config: Config, items: np.ndarray, offsets: np.ndarray, n_items: int
) -> np.ndarray:
    window, rng = config["cooccurrence_window"], np.random.default_rng(config["seed"])
    bar = tqdm(total=window + 1, desc="Item embeddings", disable=not config["show_progress"])
    with bar:
        counts = cooccurrence(items, offsets, n_items, window, bar.update)
        vectors = ppmi_svd(counts, config["semantic_hidden_size"], rng)
        bar.update()
    # An item without a training neighbour has no vector; equal vectors would all collide.
    cold = np.flatnonzero(np.abs(vectors[1:]).sum(axis=1) == 0) + 1
    if len(cold):
        logger.info(
            "item embeddings: %d of %d items never co-occur in training; each gets a random vector",
            len(cold),
            n_items - 1,
        )
        scale = vectors[1:].std() or 1.0
        vectors[cold] = rng.normal(0, scale, (len(cold), vectors.shape[1]))
    return vectors.astype(np.float32)


def cooccurrence(
    items: np.ndarray,
    offsets: np.ndarray,
    n_items: int,
    window: int,
    advance: Callable[[], object] = lambda: None,
) -> sparse.csr_matrix:
    """Symmetric item-item counts, a pair at distance ``d <= window`` counting ``1 / d``.

    ``advance`` is called after each distance.
    """
    ends = np.repeat(offsets[1:], np.diff(offsets))
    total = sparse.csr_matrix((n_items, n_items), dtype=np.float64)
    position = np.arange(len(items))
    for distance in range(1, window + 1):
        left = position[position + distance < ends]
        pairs = (items[left], items[left + distance])
        weight = np.full(len(left), 1.0 / distance)
        total = total + sparse.coo_matrix((weight, pairs), shape=total.shape).tocsr()
        advance()
    total.setdiag(0)
    total.eliminate_zeros()
    return (total + total.T).tocsr()


def ppmi_svd(counts: sparse.csr_matrix, width: int, rng: np.random.Generator) -> np.ndarray:
    """``U sqrt(S)`` of the positive pointwise mutual information, rows at unit length.

    Without unit length, rare items sit together near the origin and share their codes.

    Args:
        counts: symmetric co-occurrence ``[N, N]``.
        width: columns of the result; those past the rank that can be had are zero.

    Returns:
        ``[N, width]``, zero for items without a count.
    """
    table = counts.tocoo()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    pmi = np.log(table.data * totals.sum() / (totals[table.row] * totals[table.col]))
    keep = pmi > 0
    ppmi = sparse.csr_matrix(
        (pmi[keep], (table.row[keep], table.col[keep])), shape=counts.shape, dtype=np.float64
    )
    rank = min(width, min(ppmi.shape) - 2)
    vectors = np.zeros((counts.shape[0], width))
    if ppmi.nnz == 0 or rank < 1:
        return vectors
    start = rng.standard_normal(ppmi.shape[0])
    u, s, _ = svds(ppmi, k=rank, v0=start)
    order = np.argsort(-s)
    u, s = u[:, order], np.maximum(s[order], 0)
    u *= np.where(u[np.abs(u).argmax(axis=0), np.arange(rank)] < 0, -1, 1)  # fix the sign
    vectors[:, :rank] = u * np.sqrt(s)
    vectors[totals == 0] = 0
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def file_embedding(config: Config, dataset: WholeSequenceDataset) -> np.ndarray:
    """Vectors from a file, matched to items by their tokens.

    ``item_embedding_file`` is a ``.npy`` of shape ``[rows, width]`` beside a text file of the
    same stem ending in ``.items`` (one item token a line, in row order), or RecBole's
    ``.itememb`` (item token, then the vector separated by spaces).

    Raises:
        UserError: if the file is missing, misses items, or holds a value that is not finite.
    """
    path = Path(config["item_embedding_file"])
    tokens, rows = _read_itememb(path) if path.suffix == ".itememb" else _read_npy(path)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise UserError(
            f"item_embedding_file: {path} has {len(bad)} rows with NaN or infinity, "
            f"first for item {tokens[bad[0]]!r}: mend or remove them."
        )
    row_of = {token: row for row, token in enumerate(tokens)}
    wanted = dataset.field2id_token[dataset.iid_field][1:]
    missing = [token for token in wanted if token not in row_of]
    if missing:
        raise UserError(
            f"item_embedding_file: {path} misses {len(missing)} of {len(wanted)} items, "
            f"first {', '.join(missing[:5])}: add a row for each."
        )
    vectors = rows[[row_of[token] for token in wanted]]
    return np.concatenate([np.zeros_like(vectors[:1]), vectors]).astype(np.float32)


def _read_npy(path: Path) -> tuple[list[str], np.ndarray]:
    try:
        rows = np.load(_existing(path), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"item_embedding_file: {path} is no .npy of numbers.") from error
    names = path.with_suffix(".items")
    tokens = _existing(names).read_text(encoding="utf-8").split("\n")
    tokens = tokens[:-1] if tokens and tokens[-1] == "" else tokens
    if rows.ndim != 2 or len(rows) != len(tokens) or rows.dtype.kind not in "fiu":
        raise UserError(
            f"item_embedding_file: {path} has shape {rows.shape} of {rows.dtype}, {names} has "
            f"{len(tokens)} lines: need a row of numbers for each line."
        )
    return tokens, rows


def _read_itememb(path: Path) -> tuple[list[str], np.ndarray]:
    table = pd.read_csv(_existing(path), sep="\t", dtype=str, keep_default_na=False)
    if table.shape[1] < 2:
        raise UserError(f"item_embedding_file: {path} needs an id and a vector column (tabs).")
    vectors = []
    for token, text in table.iloc[:, :2].itertuples(index=False):
        try:
            vectors.append(np.array(text.split(), dtype=np.float32))
        except ValueError as error:
            raise UserError(f"item_embedding_file: {path}, item {token!r}: {error}.") from error
    widths = {len(vector) for vector in vectors}
    if len(widths) != 1:
        raise UserError(f"item_embedding_file: {path} has vectors of widths {sorted(widths)}.")
    return table.iloc[:, 0].tolist(), np.stack(vectors)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"item_embedding_file: {path} does not exist.")
    return path


def _cached(folder: Path, manifest: dict, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array stored under a manifest, made and stored where there is none."""
    text = json.dumps(manifest, sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
    try:
        vectors = load_file(path)["embedding"]
        logger.info("item embeddings: read from %s", path)
        return vectors
    except (OSError, SafetensorError):
        vectors = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file({"embedding": vectors}, temporary, metadata={"manifest": text})
        temporary.replace(path)
    except OSError as error:
        logger.warning("embedding_cache: %s cannot be written (%s), going on", folder, error)
    return vectors


ITEM_EMBEDDINGS: dict[str, Callable] = {
    "collaborative": collaborative_embedding,
    "file": file_embedding,
}
