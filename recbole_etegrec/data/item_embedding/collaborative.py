"""Item embeddings from which items follow each other in training: a factorised count matrix."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import svds
from tqdm import tqdm

from recbole_etegrec.data.dataset import WholeSequenceDataset
from recbole_etegrec.data.item_embedding.cache import cache_path, cached, interactions_digest
from recbole_etegrec.data.item_embedding.cold_items import fill_cold_items
from recbole_etegrec.data.item_embedding.streamed import STREAMED, streamed_ppmi, subspace

LARGE = 2_000_000  # interactions, above which they are counted a part of the items at a time
_MORE, _ROUNDS = 64, 60  # columns beside those wanted, and products, of the SVD on a GPU


def collaborative_embedding(
    dataset: WholeSequenceDataset,
    *,
    width: int,
    window: int,
    seed: int,
    device: torch.device,
    cache: Path,
    show_progress: bool,
) -> np.ndarray:
    """Truncated SVD of the items' positive pointwise mutual information (PPMI).

    Items that follow each other within ``window`` steps of a training sequence co-occur, weighted
    by one over their distance.

    Args:
        dataset: the training part.
        width: columns of the result.
        device: where the matrix is factorised.
        cache: the folder in which the vectors are kept, under a manifest of the training
            interactions and the arguments.
    """
    large = int(dataset.sequences.lengths.sum()) > LARGE
    manifest = {
        "source": f"collaborative: PPMI, discounted, {STREAMED if large else 'SVD'}, "
        "rows at unit length",
        "interactions": interactions_digest(dataset),
        "items": int(dataset.item_num),
        "semantic_hidden_size": width,
        "cooccurrence_window": window,
        "seed": seed,
    }

    def make() -> np.ndarray:
        if not large:
            return _make(dataset, width, window, seed, device, show_progress)
        parts = cache_path(cache, manifest).with_suffix(".parts")
        return _make_streamed(dataset, width, window, seed, device, parts, show_progress)

    return cached(cache, manifest, make)


def _make(
    dataset: WholeSequenceDataset,
    width: int,
    window: int,
    seed: int,
    device: torch.device,
    show_progress: bool,
) -> np.ndarray:
    rng = np.random.default_rng(seed)
    bar = tqdm(total=window + 1, desc="Item embeddings", disable=not show_progress)
    with bar:
        items, offsets = dataset.inter_feat[dataset.iid_field].numpy(), dataset.sequences.offsets
        counts = cooccurrence(items, offsets, dataset.item_num, window, bar.update)
        vectors = ppmi_svd(counts, width, rng, device)
        bar.update()
    return _complete(vectors, rng)


def _make_streamed(
    dataset: WholeSequenceDataset,
    width: int,
    window: int,
    seed: int,
    device: torch.device,
    parts: Path,
    show_progress: bool,
) -> np.ndarray:
    """The same of many interactions, in bounded memory; see `streamed.py`."""
    rng = np.random.default_rng(seed)
    with tqdm(desc="Item embeddings", disable=not show_progress) as bar:
        table = streamed_ppmi(dataset.sequences, dataset.item_num, window, parts, bar)
        known = np.diff(table.indptr) > 0
        u, s = subspace(table, min(width, dataset.item_num - 2), rng, device, bar)
        vectors = unit_rows(u, s, width, known)
    return _complete(vectors, rng)


def _complete(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    cold = np.flatnonzero(np.abs(vectors[1:]).sum(axis=1) == 0) + 1
    fill_cold_items(vectors, cold, rng, "never co-occur in training")
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


def ppmi_svd(
    counts: sparse.csr_matrix,
    width: int,
    rng: np.random.Generator,
    device: torch.device | None = None,
) -> np.ndarray:
    """``U sqrt(S)`` of the positive pointwise mutual information, rows at unit length.

    Information is discounted by how often a pair and its rarer item were counted (Pantel and Lin,
    2002): what a single user has brought together says more of the user than of the items, and no
    history that is ranked for has it. Without unit length, rare items sit together near the origin
    and share their codes.

    Args:
        counts: symmetric co-occurrence ``[N, N]``.
        width: columns of the result; those past the rank that can be had are zero.
        device: where the matrix is factorised; none: on the CPU.

    Returns:
        ``[N, width]``, zero for items without a count.
    """
    table = counts.tocoo()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    pmi = np.log(table.data * totals.sum() / (totals[table.row] * totals[table.col]))
    rarer = np.minimum(totals[table.row], totals[table.col])
    pmi *= table.data / (table.data + 1) * rarer / (rarer + 1)
    keep = pmi > 0
    ppmi = sparse.csr_matrix(
        (pmi[keep], (table.row[keep], table.col[keep])), shape=counts.shape, dtype=np.float64
    )
    rank = min(width, min(ppmi.shape) - 2)
    vectors = np.zeros((counts.shape[0], width))
    if ppmi.nnz == 0 or rank < 1:
        return vectors
    if device is not None and device.type == "cuda":
        u, s = largest_eigenvectors(ppmi, rank, rng, device)
    else:
        u, s, _ = svds(ppmi, k=rank, v0=rng.standard_normal(ppmi.shape[0]))
    return unit_rows(u, s, width, totals > 0)


def unit_rows(u: np.ndarray, s: np.ndarray, width: int, counted: np.ndarray) -> np.ndarray:
    """``U sqrt(S)`` with rows at unit length, the largest component first ``[N, width]``.

    Args:
        u: singular vectors ``[N, rank]``; they are overwritten.
        s: singular values ``[rank]``.
        counted: which rows have a count ``[N]``; the others are zero.
    """
    rank = len(s)
    order = np.argsort(-s)
    u, s = u[:, order], np.maximum(s[order], 0)
    u *= np.where(u[np.abs(u).argmax(axis=0), np.arange(rank)] < 0, -1, 1)  # fix the sign
    vectors = np.zeros((len(u), width), dtype=u.dtype)
    vectors[:, :rank] = u * np.sqrt(s)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    # Rows of items outside all the components kept are rounding noise.
    known = counted[:, None] & (norms > 1e-6 * norms.max())
    vectors /= np.maximum(norms, 1e-12)
    vectors[~known[:, 0]] = 0.0
    return vectors


def largest_eigenvectors(
    matrix: sparse.csr_matrix, rank: int, rng: np.random.Generator, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors ``[N, rank]`` and absolute eigenvalues of a symmetric matrix ``[N, N]``.

    They are its left singular vectors and singular values. A random subspace is multiplied with
    the matrix until the largest are left in it, which is quick where products are.
    """
    coo = matrix.tocoo()
    places = torch.from_numpy(np.stack([coo.row, coo.col]).astype(np.int64))
    values = torch.from_numpy(coo.data)
    table = torch.sparse_coo_tensor(places, values, coo.shape, check_invariants=False)
    table = table.to(device).coalesce()
    columns = min(rank + _MORE, matrix.shape[0])
    start = torch.from_numpy(rng.standard_normal((matrix.shape[0], columns))).to(device)
    basis = torch.linalg.qr(table @ start).Q
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(table @ (table @ basis)).Q
    values, vectors = torch.linalg.eigh(basis.T @ (table @ basis))
    largest = values.abs().argsort(descending=True)[:rank]
    return (basis @ vectors[:, largest]).cpu().numpy(), values[largest].abs().cpu().numpy()
