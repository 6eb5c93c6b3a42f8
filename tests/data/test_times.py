"""Moments in the order of the numbers that files have for them."""

import pandas as pd
import pytest

from recbole_etegrec.data.times import exact_ranks


@pytest.mark.parametrize(
    ("texts", "ranks"),
    [
        (["1700000000000000002", "1700000000000000001", "3"], [2, 1, 0]),
        (["1700000000.0000000002", "1700000000.0000000001", "1700000000"], [2, 1, 0]),
        (["1e3", "1000", "999.5", "-2", "1000.0"], [2, 2, 1, 0, 2]),
        (["7"], [0]),
    ],
)
def test_exact_ranks_follow_the_numbers_when_floats_would_round_them(texts, ranks):
    assert exact_ranks(pd.Series(texts)).tolist() == ranks
