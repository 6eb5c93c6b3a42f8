"""What every ranker of the table promises to those who ask it."""

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_etegrec.decoding import RANKERS, BatchFields, CodeRanker
from tests.helpers import small_item_codes, small_recommender

N_ITEMS = 40
FIELDS = BatchFields("item_id", "item_id_list", "item_length")
CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(params=RANKERS)
def ranker(request) -> CodeRanker:
    kind = RANKERS[request.param]
    options = {"num_beams": 12, "candidates": 12, "item_score_weight": 1.5, "item_index_from": None}
    options |= {"new_item_every": 10, "repeat_score": -1.5}
    codes = small_item_codes(n_items=N_ITEMS, code_num=12)
    recommender = small_recommender(code_num=12, head_items=N_ITEMS + 1)
    return kind(recommender, codes, FIELDS, **{key: options[key] for key in kind.keys})


@pytest.fixture
def batch() -> Interaction:
    """Three users, of 1, 3 and 6 items, with more padding than they need."""
    history = torch.zeros(3, 9, dtype=torch.long)
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([1, 3, 6])
    for row, length in enumerate(lengths):
        history[row, :length] = torch.randint(1, N_ITEMS + 1, (length,), generator=generator)
    return Interaction({FIELDS.history: history, FIELDS.length: lengths})


def test_best_items_have_the_scores_that_they_are_given_otherwise(ranker, batch):
    ranking, scores = ranker.best(batch, 10), ranker.score_all(batch)
    assert ranking.items.shape == ranking.scores.shape == (3, 10)
    assert scores.shape == (3, N_ITEMS + 1) and scores[:, 0].isneginf().all()
    torch.testing.assert_close(scores.topk(10).values, ranking.scores, **CLOSE)
    torch.testing.assert_close(ranker.score(batch, ranking.items), ranking.scores, **CLOSE)


def test_rankings_of_one_width_begin_alike(ranker, batch):
    few, more = ranker.best(batch, 3), ranker.best(batch, 12)
    assert ranker.width(3) == ranker.width(12) >= 12
    assert torch.equal(few.items, more.items[:, :3])
    assert torch.equal(few.scores, more.scores[:, :3])


def test_rows_end_in_item_0_when_too_few_items_are_left(ranker, batch):
    rows = torch.zeros(N_ITEMS - 2, dtype=torch.long)
    excluded = rows, torch.arange(3, N_ITEMS + 1)  # the first row keeps items 1 and 2
    ranking = ranker.best(batch, 5, excluded)
    assert sorted(ranking.items[0].tolist()) == [0, 0, 0, 1, 2]
    assert ranking.scores[0, 2:].isneginf().all() and ranking.scores[1:].isfinite().all()
    assert ranker.score_all(batch, excluded)[excluded].isneginf().all()


def test_ranker_follows_the_codes_when_they_are_rebuilt(ranker, batch):
    before = ranker.best(batch, 10)
    generator = torch.Generator().manual_seed(9)
    ranker.codes.rebuild(torch.randint(3, (N_ITEMS, 3), generator=generator))
    after = ranker.best(batch, 10)
    assert not torch.equal(before.items, after.items)
    torch.testing.assert_close(ranker.score(batch, after.items), after.scores, **CLOSE)
