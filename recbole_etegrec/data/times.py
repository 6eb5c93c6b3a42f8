"""The order of moments by the numbers that a file has for them, before any of them is rounded."""

from decimal import Decimal

import numpy as np
import pandas as pd

EXACT = 2**53  # whole numbers below it are exact in float64


def are_exact(values: np.ndarray) -> bool:
    """Whether numbers of a file are as they stand there, once they have been read as float64.

    Decimals may have been rounded; whole numbers have not, where they are small enough.
    """
    return bool((np.abs(values) < EXACT).all() and (values == np.floor(values)).all())


def exact_ranks(texts: pd.Series) -> np.ndarray:
    """Rank moments by their exact numbers; equal ones share a rank.

    Args:
        texts: decimal numbers ``[n]``.

    Returns:
        Ranks from 0 ``[n]``.
    """
    codes, distinct = pd.factorize(texts)
    if pd.Series(distinct).str.fullmatch(r"\d{1,18}").all():
        numbers = distinct.astype(np.int64)
    else:
        numbers = np.array([Decimal(text) for text in distinct], dtype=object)
    return np.unique(numbers, return_inverse=True)[1][codes]
