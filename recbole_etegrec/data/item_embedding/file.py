"""Item embeddings made elsewhere, read from a file and matched to items by their tokens."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file

from recbole_etegrec.config import Config
from recbole_etegrec.data.dataset import WholeSequenceDataset
from recbole_etegrec.errors import UserError

logger = logging.getLogger(__name__)


def file_embedding(config: Config, dataset: WholeSequenceDataset) -> np.ndarray:
    """Vectors from a file, matched to items by their tokens.

    ``item_embedding_file`` is a ``.npy``, or a ``.safetensors`` with one tensor, of shape
    ``[rows, width]`` beside a text file of the same stem ending in ``.items`` (one item token a
    line, in row order), or RecBole's ``.itememb`` (item token, then the vector separated by
    spaces). Rows of items that the dataset does not have are left out.

    Raises:
        UserError: if the file is missing, misses items or names one twice, or holds a value that
            is not finite.
    """
    path = Path(config["item_embedding_file"])
    tokens, rows = _read_itememb(path) if path.suffix == ".itememb" else _read_matrix(path)
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise UserError(
            f"item_embedding_file: {path} has {len(bad)} rows with NaN or infinity, "
            f"first for item {tokens[bad[0]]!r}: mend or remove them."
        )
    row_of = {token: row for row, token in enumerate(tokens)}
    if len(row_of) < len(tokens):
        twice = next(token for row, token in enumerate(tokens) if row_of[token] != row)
        raise UserError(
            f"item_embedding_file: {path} has {len(tokens)} rows for {len(row_of)} items, "
            f"{twice!r} more than once: keep one row for each."
        )
    wanted = dataset.field2id_token[dataset.iid_field][1:]
    missing = [token for token in wanted if token not in row_of]
    if missing:
        raise UserError(
            f"item_embedding_file: {path} misses {len(missing)} of {len(wanted)} items, "
            f"first {', '.join(missing[:5])}: add a row for each."
        )
    logger.info(
        "item embeddings: %s has rows for all %d items, and %d for others",
        path,
        len(wanted),
        len(tokens) - len(wanted),
    )
    vectors = rows[[row_of[token] for token in wanted]]
    return np.concatenate([np.zeros_like(vectors[:1]), vectors]).astype(np.float32)


def _read_matrix(path: Path) -> tuple[list[str], np.ndarray]:
    try:
        if path.suffix == ".safetensors":
            (tensor,) = load_file(_existing(path)).values()
            rows = tensor.float().numpy()
        else:
            rows = np.load(_existing(path), allow_pickle=False)
    except (ValueError, EOFError, SafetensorError) as error:
        raise UserError(
            f"item_embedding_file: {path} is no .npy of numbers, nor .safetensors with one tensor."
        ) from error
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
