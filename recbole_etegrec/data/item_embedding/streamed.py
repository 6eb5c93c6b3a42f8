"""Which items follow each other in very many sequences: counted and factorised in bounded memory.

Counts of all pairs of items do not fit into memory. So the rows of the matrix are made a range of
items at a time, each by a pass over all sequences: exactly, and then pruned to the `NEIGHBOURS` of
each item that say most of it. What has been made of ranges is kept on disk until all is done, so
that work that was stopped goes on.
"""

import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from tqdm import tqdm

from recbole_etegrec.data.sequences import Sequences, rank_in_run
from recbole_etegrec.storage.atomic import atomic_file

logger = logging.getLogger(__name__)

NEIGHBOURS, MOST = 50, 100_000_000  # of an item, and of all items together, at most
PAIRS = 2**26  # that are counted in one pass over the sequences
_MORE, _ROUNDS = 32, 6  # columns beside those wanted, and products, of the factorisation
STREAMED = f"{NEIGHBOURS} neighbours ({MOST} at most), {_ROUNDS} subspace iterations"


def streamed_ppmi(
    sequences: Sequences, n_items: int, window: int, parts: Path, bar: tqdm
) -> sparse.csr_matrix:
    """Discounted positive mutual information of items, of the strongest neighbours of each alone.

    A pair at distance ``d <= window`` counts ``1 / d``. A pair is kept if it is among the
    neighbours of either item.

    Args:
        parts: a folder for what is done; it is deleted in the end.

    Returns:
        Symmetric, float32 ``[N, N]``.
    """
    totals, pairs = _totals(sequences, n_items, window)
    most = int(np.clip(MOST // n_items, 1, NEIGHBOURS))
    ranges = _ranges(pairs)
    bar.total = len(ranges) + _ROUNDS
    rows = []
    for number, (low, high) in enumerate(ranges):
        rows.append(
            _kept_rows(parts / f"{number:06}.npz", sequences, low, high, window, totals, most)
        )
        bar.update()
    table = sparse.vstack(rows, format="csr")
    del rows
    pruned = int(pairs.sum()) > table.nnz
    table = table.maximum(table.T).tocsr()
    if pruned:
        logger.info(
            "item embeddings: the %d strongest neighbours of each item are kept, %d pairs in all",
            most,
            table.nnz,
        )
    shutil.rmtree(parts, ignore_errors=True)
    return table


def _pairs(sequences: Sequences, window: int) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Items, those that follow them, and the weight of each pair; a block and a distance a time."""
    for block in sequences.blocks():
        ends = np.repeat(block.end, block.lengths)
        place = np.arange(len(ends))
        for distance in range(1, window + 1):
            left = place[place + distance < ends]
            one, other = block.items[left], block.items[left + distance]
            differ = one != other
            yield one[differ], other[differ], 1.0 / distance


def _totals(sequences: Sequences, n_items: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """The weight of all pairs of each item, and their number ``[N]``."""
    totals, numbers = np.zeros(n_items), np.zeros(n_items, dtype=np.int64)
    for one, other, weight in _pairs(sequences, window):
        number = np.bincount(one, minlength=n_items) + np.bincount(other, minlength=n_items)
        totals += weight * number
        numbers += number
    return totals, numbers


def _ranges(pairs: np.ndarray) -> list[tuple[int, int]]:
    """Ranges of items with about `PAIRS` pairs each, or of one item with more."""
    cuts = np.flatnonzero(np.diff(np.cumsum(pairs) // PAIRS)) + 1
    bounds = [0, *cuts.tolist(), len(pairs)]
    return list(zip(bounds[:-1], bounds[1:], strict=True))


def _kept_rows(
    path: Path,
    sequences: Sequences,
    low: int,
    high: int,
    window: int,
    totals: np.ndarray,
    most: int,
) -> sparse.csr_matrix:
    """Rows of a range, read where they have been made."""
    if path.is_file():
        try:
            return sparse.load_npz(path)
        except (OSError, ValueError, KeyError):
            logger.warning("%s is damaged, it is made anew", path)
    rows = _strongest(_counts(sequences, low, high, window, len(totals)), low, totals, most)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as fresh, fresh.open("wb") as file:
            sparse.save_npz(file, rows, compressed=False)
    except OSError as error:
        logger.warning("%s cannot be written (%s): a stop would lose it", path, error)
    return rows


def _counts(
    sequences: Sequences, low: int, high: int, window: int, n_items: int
) -> sparse.csr_matrix:
    """Counts of the pairs of items from `low` to `high` with all others ``[high - low, N]``."""
    found: tuple[list, list, list] = ([], [], [])
    for one, other, weight in _pairs(sequences, window):
        for row, column in ((one, other), (other, one)):
            own = (row >= low) & (row < high)
            found[0].append((row[own] - low).astype(np.int32))
            found[1].append(column[own].astype(np.int32))
            found[2].append(np.full(len(found[0][-1]), weight, dtype=np.float32))
    row, column, weight = map(np.concatenate, found)
    return sparse.coo_matrix((weight, (row, column)), shape=(high - low, n_items)).tocsr()


def _strongest(
    counts: sparse.csr_matrix, low: int, totals: np.ndarray, most: int
) -> sparse.csr_matrix:
    """The pairs of each row that say most, by information that is discounted as `ppmi_svd` says."""
    lengths = np.diff(counts.indptr)
    row = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    totals = totals.astype(np.float32)
    own, other, count = totals[low + row.astype(np.int64)], totals[counts.indices], counts.data
    information = np.log(count / own / other * totals.sum(dtype=np.float64).astype(np.float32))
    rarer = np.minimum(own, other)
    information *= count / (count + 1) * rarer / (rarer + 1)
    keep = np.flatnonzero(information > 0)
    row, information = row[keep], information[keep]
    # Numbers that sort by row, then by falling information: positive floats sort as their bits do.
    order = ((row << np.uint64(32)) | ~information.view(np.uint32)).argsort()
    order = np.sort(order[rank_in_run(row[order]) < most])
    places = (row[order].astype(np.int32), counts.indices[keep[order]])
    return sparse.csr_matrix((information[order], places), shape=counts.shape, dtype=np.float32)


def subspace(
    matrix: sparse.csr_matrix,
    rank: int,
    rng: np.random.Generator,
    device: torch.device,
    bar: tqdm,
) -> tuple[np.ndarray, np.ndarray]:
    """Largest eigenvectors ``[N, rank]``, by absolute eigenvalue ``[rank]``, of a symmetric matrix.

    Halko et al. (2011), algorithm 4.4 for a symmetric matrix, in float32.
    """
    columns = min(rank + _MORE, matrix.shape[0])
    parts = map(torch.from_numpy, (matrix.indptr, matrix.indices, matrix.data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that sparse tensors are new
        table = torch.sparse_csr_tensor(*parts, matrix.shape, check_invariants=False).to(device)
    start = rng.standard_normal((matrix.shape[0], columns), dtype=np.float32)
    basis = torch.from_numpy(start).to(device)
    del start
    for _ in range(_ROUNDS - 1):
        basis = torch.linalg.qr(table @ basis).Q
        bar.update()
    values, vectors = torch.linalg.eigh(basis.T @ (table @ basis))
    bar.update()
    largest = values.abs().argsort(descending=True)[:rank]
    return (basis @ vectors[:, largest]).cpu().numpy(), values[largest].abs().cpu().numpy()
