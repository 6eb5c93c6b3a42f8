"""Vectors of fields, fitted on some items and read of others."""

import numpy as np
import pandas as pd
import pytest

from recbole_etegrec.data.item_embedding.fields import fit_fields
from recbole_etegrec.data.item_embedding.predicted import predict
from recbole_etegrec.errors import UserError

KINDS = {"title": "token_seq", "brand": "token", "price": "float"}


def table_of(rows: list[tuple[str, str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(KINDS), index=[f"i{n}" for n in range(len(rows))])


ROWS = [
    ("Red pen", "Acme", "1"),
    ("Blue pen", "Acme", "2"),
    ("Red ink", "Other", "3"),
    ("Blue ink", "Other", ""),
    ("Red paper", "Acme", "1"),
]


def test_read_gives_items_that_came_later_the_vectors_of_their_likes():
    reader = fit_fields(table_of(ROWS), KINDS, 3)
    known = reader.read(table_of(ROWS))
    assert known.shape == (5, reader.width) == (5, 3 + 8)  # of 5 terms
    later = reader.read(table_of([("RED, pen!", "acme", "1"), ("unheard", "of", "")]))
    np.testing.assert_allclose(later[0], known[0], atol=1e-6)
    assert not later[1].any()


def test_words_of_several_fields_are_told_apart_and_rare_ones_left_out():
    rows = [("acme", "pen", ""), ("acme", "x", ""), ("pen", "acme", ""), ("z", "acme", "")]
    reader = fit_fields(table_of(rows), KINDS, 2)
    assert sorted(reader.terms) == ["brand:acme", "title:acme"]
    read = reader.read(table_of(rows))[:, :2]
    assert np.allclose(read[0], read[1]) and abs(read[0] @ read[2]) < 1e-6


def test_numbers_are_shared_between_typical_values_and_missing_ones_are_zero():
    kinds, numbers = {"price": "float"}, [str(n) for n in range(8)]
    table = pd.DataFrame({"price": [*numbers, ""]}, index=[f"i{n}" for n in range(9)])
    reader = fit_fields(table, kinds, 3)
    read = reader.read(pd.DataFrame({"price": ["2", "2.25", "-5", "99", " "]}, index=list("abcde")))
    assert read[0].argmax() == 2 and read[0].sum() == pytest.approx(1)
    np.testing.assert_allclose(read[1, 2:4], [0.75, 0.25], atol=1e-6)
    assert read[2, 0] == 1 and read[3, -1] == 1 and not read[4].any()


def test_fit_fields_names_item_and_field_when_a_number_is_none():
    rows = [("a", "b", "1"), ("a", "b", "cheap")]
    with pytest.raises(UserError, match="field 'price' of item 'i1' is 'cheap', which is no num"):
        fit_fields(table_of(rows), KINDS, 2)


def test_read_gives_nothing_when_items_have_no_word_and_no_number_in_common():
    reader = fit_fields(table_of([("a", "b", ""), ("c", "d", "")]), KINDS, 4)
    assert reader.width == 0 and reader.read(table_of(ROWS)).shape == (5, 0)


def test_predict_recovers_what_is_linear_in_content():
    rng = np.random.default_rng(0)
    content, slopes = rng.standard_normal((300, 5)), rng.standard_normal((5, 3))
    found = predict(content[:200], content[:200] @ slopes + 1, content[200:])
    np.testing.assert_allclose(found, content[200:] @ slopes + 1, atol=0.15)
    noise = rng.standard_normal((200, 3))
    assert np.abs(predict(content[:200], noise, content[200:])).mean() < 0.3  # shrunk to the mean
