"""Where items that came after training stand among the others."""

import pytest
import torch

from recbole_etegrec.decoding import FusedRanker, HeadRanker, catalogue_parts
from recbole_etegrec.decoding import fused as fused_module
from recbole_etegrec.decoding.new_items import among_new, spaced
from tests.decoding.test_rankers import FIELDS, N_ITEMS, batch  # noqa: F401
from tests.helpers import small_item_codes, small_recommender

CLOSE = {"atol": 1e-5, "rtol": 0}
NEW = 8


@pytest.fixture
def parts():
    """A recommender that learned `N_ITEMS` items, and codes of eight more."""
    recommender = small_recommender(code_num=12, head_items=N_ITEMS + 1)
    recommender.item_head.likeness = 2.0
    generator = torch.Generator().manual_seed(1)
    recommender.item_head.lend(torch.randn(N_ITEMS + 1 + NEW, 10, generator=generator))
    return recommender, small_item_codes(n_items=N_ITEMS + NEW, code_num=12)


@pytest.fixture(params=["head", "fused"])
def ranker(request, parts) -> HeadRanker:
    options = {"new_item_every": 4, "new_item_bonus": 3.0}
    if request.param == "head":
        return HeadRanker(*parts, FIELDS, **options)
    return FusedRanker(*parts, FIELDS, candidates=N_ITEMS, item_score_weight=1.5, **options)


def placed_in_turn(scores: list[float], new: list[bool], every: int) -> list[int]:
    """Indices by the rule of places, one place after the other."""
    ranked = sorted(range(len(scores)), key=lambda n: -scores[n])
    queues = {kind: [n for n in ranked if new[n] == kind] for kind in (False, True)}
    others, news = queues[False], queues[True]
    taken, order = 0, []
    while others or news:
        may = news and (len(order) + 1 >= (taken + 1) * every or not others)
        if may and (not others or scores[news[0]] > scores[others[0]]):
            order.append(news.pop(0))
            taken += 1
        else:
            order.append(others.pop(0))
    return order


@pytest.mark.parametrize("every", [1, 2, 3, 10])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_new_items_are_placed_as_one_place_after_the_other_would(every, share):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20, 30, generator=generator)
    new = torch.rand(20, 30, generator=generator) < share
    scores = scores + 2 * new
    found = spaced(scores, new, every)
    assert torch.equal(found[~new], scores[~new])
    assert (found[new] <= scores[new]).all()
    for row in range(20):
        expected = placed_in_turn(scores[row].tolist(), new[row].tolist(), every)
        assert found[row].argsort(descending=True).tolist() == expected


def test_items_that_are_not_ranked_take_no_places():
    scores = torch.tensor([[3.0, -torch.inf, 1.0, 5.0, 2.0, -torch.inf]])
    new = torch.tensor([[False, False, False, True, False, True]])
    assert spaced(scores, new, 2)[0].topk(4).indices.tolist() == [0, 3, 4, 2]
    assert spaced(scores, new, 9)[0].topk(4).indices.tolist() == [0, 4, 2, 3]
    assert spaced(scores, new, 9)[0, [1, 5]].isneginf().all()


def test_scores_of_new_items_are_a_softmax_among_them(ranker, batch):  # noqa: F811
    items = torch.arange(N_ITEMS + 1, N_ITEMS + 1 + NEW).expand(3, -1)
    scores = ranker.score(batch, items) - ranker.new_item_bonus
    torch.testing.assert_close((scores / ranker.mass).exp().sum(dim=1), torch.ones(3))
    torch.testing.assert_close(among_new(scores, ranker.mass), scores, **CLOSE)


def test_every_fourth_place_is_for_a_new_item_at_most(ranker, batch):  # noqa: F811
    ranker.new_item_bonus = 100.0
    best, scores = ranker.best(batch, 20), ranker.score_all(batch)
    places = (best.items > N_ITEMS).nonzero()[:, 1].view(3, -1) + 1
    assert places.tolist() == [[4, 8, 12, 16, 20]] * 3
    assert torch.equal(scores.topk(20).indices, best.items)
    ranker.new_item_bonus = -100.0
    assert int(ranker.best(batch, 20).items.max()) <= N_ITEMS


def test_other_items_have_their_scores_when_items_are_added(ranker, parts, batch):  # noqa: F811
    items = torch.arange(1, N_ITEMS + 1).expand(3, -1)
    with_new = ranker.score(batch, items)
    parts[0].item_head.lend(parts[0].item_head._embedding[: N_ITEMS + 1])
    ranker.codes = small_item_codes(n_items=N_ITEMS + NEW, code_num=12)
    ranker.codes.table = ranker.codes.table[: N_ITEMS + 1]
    torch.testing.assert_close(ranker.score(batch, items), with_new, **CLOSE)


@pytest.mark.parametrize("excludes", [False, True])
def test_parts_give_the_ranking_of_the_whole(excludes, ranker, batch, monkeypatch):  # noqa: F811
    best = ranker.best(batch, 4).items
    excluded = (torch.arange(3).repeat_interleave(4), best.flatten()) if excludes else None
    items = torch.arange(N_ITEMS + 1 + NEW).expand(3, -1)
    expected, scores = ranker.best(batch, 20, excluded), ranker.score(batch, items)
    monkeypatch.setattr(catalogue_parts, "AT_ONCE", 5)
    monkeypatch.setattr(fused_module, "AT_ONCE", 5)
    found = ranker.best(batch, 20, excluded)
    assert torch.equal(found.items, expected.items) and (found.items > N_ITEMS).any()
    torch.testing.assert_close(found.scores, expected.scores, **CLOSE)
    torch.testing.assert_close(ranker.score(batch, items), scores, **CLOSE)
