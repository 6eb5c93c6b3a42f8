"""Item embeddings made elsewhere, read from a file and matched to items by their tokens."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file

from recbole_etegrec.data.dataset import WholeSequenceDataset
from recbole_etegrec.errors import UserError

logger = logging.getLogger(__name__)


def file_embedding(dataset: WholeSequenceDataset, path: Path) -> np.ndarray:
    """Vectors from a file, matched to items by their tokens.

    The file is a ``.npy``, or a ``.safetensors`` with one tensor, of shape
    ``[rows, width]`` beside a text file of the same stem ending in ``.items`` (one item token a
    line, in row order), or RecBole's ``.itememb`` (item token, then the vector separated by
    spaces). Rows of items that the dataset does not have are left out.

    Raises:
        UserError: if the file is missing, misses items or names one twice, or holds a value that
            is not finite.
    """
    wanted = dataset.field2id_token[dataset.iid_field][1:]
    vectors = vectors_for(path, wanted, "item_embedding_file")
    return np.concatenate([np.zeros_like(vectors[:1]), vectors])


def vectors_for(path: Path, wanted: Sequence[str], key: str, in_order: bool = False) -> np.ndarray:
    """Vectors of some items from a file, float32 ``[items, width]``.

    Args:
        wanted: their tokens.
        key: that named the file, for messages.
        in_order: whether a matrix without a list of tokens has a row for each item, in order.

    Raises:
        UserError: see :func:`file_embedding`.
    """
    try:
        if path.suffix == ".itememb":
            tokens, rows = _read_itememb(path)
        else:
            tokens, rows = _read_matrix(path, list(wanted) if in_order else None)
        return _matched(path, tokens, rows, wanted)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def _matched(path: Path, tokens: list[str], rows: np.ndarray, wanted: Sequence[str]) -> np.ndarray:
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise UserError(
            f"{path} has {len(bad)} rows with NaN or infinity, "
            f"first for item {tokens[bad[0]]!r}: mend or remove them."
        )
    row_of = {token: row for row, token in enumerate(tokens)}
    if len(row_of) < len(tokens):
        twice = next(token for row, token in enumerate(tokens) if row_of[token] != row)
        raise UserError(
            f"{path} has {len(tokens)} rows for {len(row_of)} items, "
            f"{twice!r} more than once: keep one row for each."
        )
    missing = [token for token in wanted if token not in row_of]
    if missing:
        raise UserError(
            f"{path} misses {len(missing)} of {len(wanted)} items, "
            f"first {', '.join(missing[:5])}: add a row for each."
        )
    logger.info(
        "item embeddings: %s has rows for all %d items, and %d for others",
        path,
        len(wanted),
        len(tokens) - len(wanted),
    )
    return rows[[row_of[token] for token in wanted]].astype(np.float32)


def _read_matrix(path: Path, unnamed: list[str] | None) -> tuple[list[str], np.ndarray]:
    """Tokens and rows of a matrix; without a list of tokens they are `unnamed`, if any."""
    try:
        if path.suffix == ".safetensors":
            (tensor,) = load_file(_existing(path)).values()
            rows = tensor.float().numpy()
        else:
            rows = np.load(_existing(path), allow_pickle=False)
    except (ValueError, EOFError, SafetensorError) as error:
        raise UserError(
            f"{path} is no .npy of numbers, nor .safetensors with one tensor."
        ) from error
    names = path.with_suffix(".items")
    if unnamed is not None and not names.is_file():
        names, tokens = "the list of items", unnamed
    else:
        tokens = _existing(names).read_text(encoding="utf-8").split("\n")
        tokens = tokens[:-1] if tokens and tokens[-1] == "" else tokens
    if rows.ndim != 2 or len(rows) != len(tokens) or rows.dtype.kind not in "fiu":
        raise UserError(
            f"{path} has shape {rows.shape} of {rows.dtype}, {names} has "
            f"{len(tokens)} lines: need a row of numbers for each line."
        )
    return tokens, rows


def _read_itememb(path: Path) -> tuple[list[str], np.ndarray]:
    table = pd.read_csv(_existing(path), sep="\t", dtype=str, keep_default_na=False)
    if table.shape[1] < 2:
        raise UserError(f"{path} needs an id and a vector column (tabs).")
    vectors = []
    for token, text in table.iloc[:, :2].itertuples(index=False):
        try:
            vectors.append(np.array(text.split(), dtype=np.float32))
        except ValueError as error:
            raise UserError(f"{path}, item {token!r}: {error}.") from error
    widths = {len(vector) for vector in vectors}
    if len(widths) != 1:
        raise UserError(f"{path} has vectors of widths {sorted(widths)}.")
    return table.iloc[:, 0].tolist(), np.stack(vectors)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"{path} does not exist.")
    return path
