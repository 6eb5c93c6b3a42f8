"""The order of moments by the numbers that a file has for them, before any of them is rounded."""

from decimal import Decimal

import numpy as np
import pandas as pd


def exact_ranks(texts: pd.Series) -> np.ndarray:
    """Rank moments by their exact numbers; equal ones share a rank.

    Args:
        texts: decimal numbers ``[n]``.

    Returns:
        Ranks from 0 ``[n]``.
    """
    codes, distinct = pd.factorize(texts.str.replace(r"\.0*$", "", regex=True))
    if pd.Series(distinct).str.fullmatch(r"\d{1,18}").all():
        numbers = distinct.astype(np.int64)
    else:
        numbers = distinct.astype(np.float64)
        if len(np.unique(numbers)) < len(numbers):  # some are equal, or have become so
            numbers = np.array([Decimal(text.strip()) for text in distinct], dtype=object)
    return np.unique(numbers, return_inverse=True)[1][codes]
