"""Vectors of the fields of the `.item` file, fitted on the items of a run and then read of others.

Words and categories are counted, weighted by how rare they are, and projected on the directions in
which the run's items differ most (latent semantic analysis, JASIS 1990). A number is shared between
the two nearest of some typical values, so that what is linear in a vector need not be so in it.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.linalg import svds

from recbole_etegrec.data.cells import MISSING
from recbole_etegrec.data.item_embedding.text import WORDS
from recbole_etegrec.errors import UserError

READ = (*WORDS, "float")  # types of fields that say something here
_WORD = re.compile(r"\w+")
_TERMS = 50_000  # that are kept at most, the most frequent
_SEEN = 2  # items that a term must occur in to say that two are alike
_BINS = 8


class FieldReader(NamedTuple):
    """What turns the fields of an item into a vector; `fit_fields` makes it.

    Attributes:
        kinds: RecBole's types of the fields that are read, by name.
        terms: words of fields, each as ``field:word``.
        weights: of the terms ``[V]``.
        axes: directions in which items differ ``[V, width]``.
        values: typical values of each number, ascending ``[numbers, bins]``.
    """

    kinds: dict[str, str]
    terms: list[str]
    weights: np.ndarray
    axes: np.ndarray
    values: np.ndarray

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.axes.shape[1] + self.values.size

    def read(self, table: pd.DataFrame) -> np.ndarray:
        """Vectors of rows of fields ``[n, d]``; 0 stands for what is missing or was never seen.

        Raises:
            UserError: a cell of a number holds something else.
        """
        column_of = {term: column for column, term in enumerate(self.terms)}
        counts = _count(_terms_of(table, self.kinds), len(table), column_of)
        parts = [_weighted(counts, self.weights) @ self.axes]
        for field, values in zip(_numbers_of(self.kinds), self.values, strict=True):
            parts.append(_shared(_numbers(table, field), values))
        return np.concatenate(parts, axis=1).astype(np.float32)


def fit_fields(table: pd.DataFrame, kinds: dict[str, str], width: int) -> FieldReader:
    """Fit a reader on the rows of a run's items.

    Args:
        table: fields as texts, a row an item.
        kinds: types of the fields to read, each one of `READ`.
        width: of the vectors of words, at most.

    Raises:
        UserError: a cell of a number holds something else.
    """
    seen = Counter(term for _, terms in _terms_of(table, kinds) for term in terms)
    common = sorted(seen.items(), key=lambda pair: (-pair[1], pair[0]))[:_TERMS]
    terms = [term for term, items in common if _SEEN <= items < len(table)]
    weights = np.log(len(table) / np.array([seen[term] for term in terms]))
    counts = _count(_terms_of(table, kinds), len(table), {t: n for n, t in enumerate(terms)})
    columns = {field: _numbers(table, field) for field in _numbers_of(kinds)}
    numbers = {f: _typical(column) for f, column in columns.items() if not np.isnan(column).all()}
    return FieldReader(
        kinds={f: kind for f, kind in kinds.items() if kind in WORDS or f in numbers},
        terms=terms,
        weights=weights.astype(np.float32),
        axes=_axes(_weighted(counts, weights), width),
        values=np.array([*numbers.values()], dtype=np.float32).reshape(len(numbers), _BINS),
    )


def _terms_of(table: pd.DataFrame, kinds: dict[str, str]) -> Iterator[tuple[int, set[str]]]:
    """The distinct terms of each row, field by field."""
    for field, kind in kinds.items():
        if kind in WORDS:
            for row, text in enumerate(table[field]):
                yield row, {f"{field}:{word}" for word in _WORD.findall(text.lower())}


def _count(
    terms: Iterator[tuple[int, set[str]]], rows: int, column_of: dict[str, int]
) -> sparse.csr_matrix:
    """Which terms each row has ``[rows, V]``."""
    places = [
        (row, column_of[term]) for row, found in terms for term in sorted(found & column_of.keys())
    ]
    row, column = np.array(places, dtype=np.int64).reshape(-1, 2).T
    return sparse.csr_matrix((np.ones(len(row)), (row, column)), shape=(rows, len(column_of)))


def _weighted(counts: sparse.csr_matrix, weights: np.ndarray) -> sparse.csr_matrix:
    """Terms by their weights, rows at unit length."""
    weighted = counts @ sparse.diags(weights) if len(weights) else counts
    length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    return sparse.diags(1 / np.maximum(length, 1e-12)) @ weighted


def _axes(weighted: sparse.csr_matrix, width: int) -> np.ndarray:
    """The largest right singular vectors ``[V, width]``; with few terms, the terms themselves."""
    rows, terms = weighted.shape
    if terms <= width:
        return np.eye(terms, dtype=np.float32)
    if rows < 2:
        return np.zeros((terms, 0), dtype=np.float32)
    *_, axes = svds(weighted, k=min(width, rows - 1), v0=np.ones(min(rows, terms)))
    return axes[::-1].T.astype(np.float32)


def _numbers_of(kinds: dict[str, str]) -> list[str]:
    return [field for field, kind in kinds.items() if kind == "float"]


def _numbers(table: pd.DataFrame, field: str) -> np.ndarray:
    """A column as numbers; NaN where one is missing.

    Raises:
        UserError: a cell holds something else.
    """
    texts = table[field].str.strip()
    numbers = pd.to_numeric(texts, errors="coerce").to_numpy(dtype=np.float64, copy=True)
    wrong = ~np.isfinite(numbers) & ~texts.isin(MISSING).to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"item_content: field '{field}' of item '{table.index[row]}' is '{texts.iloc[row]}', "
            "which is no number: mend it, or leave the field out of content_fields"
        )
    return numbers


def _typical(numbers: np.ndarray) -> np.ndarray:
    """Quantiles of what is there ``[bins]``."""
    there = numbers[~np.isnan(numbers)]
    return np.quantile(there, np.linspace(0, 1, _BINS))


def _shared(numbers: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Each number as shares of the two typical values around it ``[n, bins]``; 0 if missing."""
    shares = np.zeros((len(numbers), len(values)))
    rows = np.flatnonzero(~np.isnan(numbers))
    inside = numbers[rows].clip(values[0], values[-1])
    above = np.searchsorted(values, inside).clip(1, len(values) - 1)
    step = values[above] - values[above - 1]
    share = np.where(step > 0, (inside - values[above - 1]) / np.where(step > 0, step, 1), 1.0)
    shares[rows, above] = share
    shares[rows, above - 1] = 1 - share
    return shares
