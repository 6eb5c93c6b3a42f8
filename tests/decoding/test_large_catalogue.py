"""Ranking a part of the catalogue at a time, and by an index, against scoring all of it."""

import pytest
import torch

from recbole_etegrec.decoding import FusedRanker, HeadRanker, catalogue_parts
from recbole_etegrec.decoding import fused as fused_module
from recbole_etegrec.decoding.item_index import RECALL, ItemIndex
from tests.decoding.test_rankers import FIELDS, N_ITEMS, batch  # noqa: F401
from tests.helpers import small_item_codes, small_recommender

CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(params=[-0.05, 0.1])
def parts(request):
    """With a recommender that takes repeats for less, or more, likely."""
    recommender = small_recommender(code_num=12, head_items=N_ITEMS + 1)
    torch.nn.init.constant_(recommender.item_head.repeat, request.param)
    return recommender, small_item_codes(n_items=N_ITEMS, code_num=12)


@pytest.fixture
def faiss():
    """What an index is made with; it is an extra."""
    return pytest.importorskip("faiss")


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of seven items at a time."""
    monkeypatch.setattr(catalogue_parts, "AT_ONCE", 7)
    monkeypatch.setattr(fused_module, "AT_ONCE", 7)


def rankings(parts, batch, excluded):  # noqa: F811
    head = HeadRanker(*parts, FIELDS)
    fused = FusedRanker(*parts, FIELDS, candidates=9, item_score_weight=1.5)
    return [ranker.best(batch, k, excluded) for ranker in (head, fused) for k in (3, 9)]


@pytest.mark.parametrize("excludes", [False, True])
def test_parts_give_the_ranking_of_the_whole(excludes, parts, batch, request):  # noqa: F811
    best = HeadRanker(*parts, FIELDS).best(batch, 4).items
    excluded = (torch.arange(3).repeat_interleave(4), best.flatten()) if excludes else None
    expected = rankings(parts, batch, excluded)
    request.getfixturevalue("small_parts")
    for found, wanted in zip(rankings(parts, batch, excluded), expected, strict=True):
        assert torch.equal(found.items, wanted.items)
        torch.testing.assert_close(found.scores, wanted.scores, **CLOSE)


def test_given_items_are_scored_as_by_the_whole(parts, batch, request):  # noqa: F811
    ranker = FusedRanker(*parts, FIELDS, candidates=9, item_score_weight=1.5)
    items = torch.arange(N_ITEMS + 1).expand(3, -1)
    expected = ranker.score(batch, items)
    request.getfixturevalue("small_parts")
    torch.testing.assert_close(ranker.score(batch, items), expected, **CLOSE)


def test_items_that_are_left_out_are_in_no_part(parts, batch, small_parts):  # noqa: F811
    first = HeadRanker(*parts, FIELDS).best(batch, 1).items
    parts[1].leave_out(first.flatten().unique())
    for found in rankings(parts, batch, None):
        assert not torch.isin(found.items, first).any()


def test_index_proposes_what_scoring_all_does_when_all_lists_are_looked_through(
    parts,
    batch,  # noqa: F811
    small_parts,
    faiss,
):
    best = HeadRanker(*parts, FIELDS).best(batch, 4).items
    excluded = torch.arange(3).repeat_interleave(4), best.flatten()
    whole, by_index = (
        FusedRanker(*parts, FIELDS, candidates=9, item_score_weight=1.5, item_index_from=least)
        for least in (None, 1)
    )
    for left_out in (None, excluded):
        wanted, found = (r.best(batch, 5, left_out) for r in (whole, by_index))
        by_index._index[2].probes = by_index._index[2].lists
        found = by_index.best(batch, 5, left_out)
        assert torch.equal(found.items, wanted.items)
        apart = found.scores - wanted.scores  # the sum over all items is estimated
        torch.testing.assert_close(apart, apart[:, :1].expand(-1, 5), **CLOSE)


def test_index_is_made_anew_when_vectors_change(parts, batch, small_parts, faiss):  # noqa: F811
    ranker = FusedRanker(*parts, FIELDS, candidates=9, item_score_weight=1.5, item_index_from=1)
    ranker.best(batch, 5)
    first = ranker._index[2]
    ranker.best(batch, 5)
    assert ranker._index[2] is first
    with torch.no_grad():
        parts[0].item_head.free += 1
    ranker.best(batch, 5)
    assert ranker._index[2] is not first


def test_index_finds_most_of_the_best_when_it_is_tuned(faiss):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(50, 16, generator=generator)
    vectors = centres.repeat(100, 1) + 0.3 * torch.randn(5000, 16, generator=generator)
    ids = torch.arange(5000) + 10
    index = ItemIndex(vectors, ids)
    query = centres[:40] + 0.3 * torch.randn(40, 16, generator=generator)
    index.tune(query, vectors, ids, 20)
    assert index.recall >= RECALL and index.probes < index.lists
    items = index.search(query, 20)
    assert items.shape == (40, 40) and items.min() >= 10
    best = (query @ vectors.T).topk(20).indices + 10
    found = (best.unsqueeze(2) == items.unsqueeze(1)).any(dim=2)
    assert float(found.float().mean()) == pytest.approx(index.recall)
    again = ItemIndex(vectors, ids)
    again.probes = index.probes
    assert torch.equal(again.search(query, 20), items)


def test_all_items_are_scored_without_faiss(parts, batch, small_parts, monkeypatch, caplog):  # noqa: F811
    ranker = FusedRanker(*parts, FIELDS, candidates=9, item_score_weight=1.5, item_index_from=1)
    expected = FusedRanker(*parts, FIELDS, candidates=9, item_score_weight=1.5).best(batch, 5)
    monkeypatch.setattr(fused_module, "can_index", lambda: False)
    for _ in range(2):
        found = ranker.best(batch, 5)
        assert torch.equal(found.items, expected.items)
    assert len(caplog.messages) == 1 and "pip install faiss-cpu" in caplog.messages[0]
