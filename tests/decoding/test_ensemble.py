"""Rankers joined to one, against sums that are added by hand."""

from types import SimpleNamespace

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_etegrec.decoding import (
    Ask,
    BeamRanker,
    EnsembleRanker,
    ExactRanker,
    FusedRanker,
    LogitRanker,
    Member,
)
from recbole_etegrec.decoding.ensemble import last_items, union
from tests.decoding.test_rankers import FIELDS, N_ITEMS, batch  # noqa: F401
from tests.helpers import small_item_codes, small_recommender

CLOSE = {"atol": 1e-5, "rtol": 0}


def model_of(ranker, most: int = 50) -> SimpleNamespace:
    return SimpleNamespace(ranker=ranker, fields=FIELDS, max_history=most, precision="fp32")


def generative(kind: type, seed: int, **options) -> SimpleNamespace:
    recommender = small_recommender(code_num=12, head_items=N_ITEMS + 1)
    codes = small_item_codes(n_items=N_ITEMS, code_num=12, seed=seed)
    return model_of(kind(recommender, codes, FIELDS, **options))


def logits(seed: int) -> SimpleNamespace:
    """A model that scores items by the last one of a history."""
    table = torch.randn(N_ITEMS + 1, N_ITEMS + 1, generator=torch.Generator().manual_seed(seed))

    def scores(interaction: Interaction) -> torch.Tensor:
        history, length = interaction[FIELDS.history], interaction[FIELDS.length]
        return table[history.gather(1, length.unsqueeze(1) - 1).squeeze(1)]

    return model_of(LogitRanker(scores, N_ITEMS + 1))


KINDS = {
    "exact": lambda: [generative(ExactRanker, 0), logits(1)],
    "mixed": lambda: [
        generative(FusedRanker, 0, candidates=8, item_score_weight=1.5),
        generative(BeamRanker, 1, num_beams=10),
        logits(2),
    ],
}


def joined(models: list, weights: list[float] | None = None, candidates: int = 12):
    weights = weights or [1.0, 0.5, 2.0][: len(models)]
    members = [
        Member(str(number), weight, lambda model=model: model)
        for number, (model, weight) in enumerate(zip(models, weights, strict=True))
    ]
    device = torch.device("cpu")
    return EnsembleRanker(members, FIELDS, N_ITEMS + 1, candidates=candidates, device=device)


@pytest.fixture(params=KINDS)
def models(request) -> list:
    return KINDS[request.param]()


def test_score_is_the_weighted_sum_of_the_members_scores(models, batch):  # noqa: F811
    ranker = joined(models)
    items = torch.arange(1, N_ITEMS + 1).expand(3, -1)
    expected = sum(
        weight * model.ranker.score(batch, items)
        for weight, model in zip(ranker.weights, models, strict=True)
    )
    torch.testing.assert_close(ranker.score(batch, items), expected, **CLOSE)
    parts = ranker.parts(batch, items)
    assert [part.weight for part in parts.values()] == ranker.weights
    found = ranker.best(batch, 10)
    torch.testing.assert_close(found.scores, expected.gather(1, found.items - 1), **CLOSE)
    everything = ranker.score_all(batch)
    best = everything.topk(10)
    assert torch.equal(best.indices, found.items) and everything[:, 0].isneginf().all()
    torch.testing.assert_close(best.values, found.scores, **CLOSE)


def test_logits_become_log_softmax_over_the_catalogue(batch):  # noqa: F811
    ranker = logits(1).ranker
    scores = ranker.score_all(batch)
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(3), **CLOSE)
    assert scores[:, 0].isneginf().all()
    excluded = torch.tensor([0, 2]), torch.tensor([5, 7])
    fewer = ranker.score_all(batch, excluded)
    assert fewer[excluded].isneginf().all()
    torch.testing.assert_close(fewer[1], scores[1], **CLOSE)


@pytest.mark.parametrize("candidates", [12, N_ITEMS])
def test_ranking_is_exact_when_members_are_or_propose_all(candidates, models, batch):  # noqa: F811
    ranker = joined(models, candidates=candidates)
    everything = ranker.score(batch, torch.arange(1, N_ITEMS + 1).expand(3, -1))
    found, expected = ranker.best(batch, 10), everything.topk(10)
    if candidates == N_ITEMS or ranker.exact:
        assert torch.equal(found.items, expected.indices + 1)
    assert (ranker.width(10) == N_ITEMS) == (candidates == N_ITEMS or ranker.exact)


def test_one_model_twice_ranks_as_it_does_alone(models, batch):  # noqa: F811
    alone = models[0].ranker.best(batch, 8)
    found = joined([models[0], models[0]], [1.0, 2.0], candidates=8).best(batch, 8)
    assert torch.equal(found.items, alone.items)
    torch.testing.assert_close(found.scores, 3 * alone.scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize("excludes", [False, True])
def test_members_ranked_in_turn_find_what_they_find_together(excludes, models, batch):  # noqa: F811
    ranker, excluded = joined(models), None
    if excludes:
        excluded = torch.tensor([0, 0, 1]), ranker.best(batch, 3).items[0]
    expected = ranker.best(batch, 10, excluded)
    asks = [Ask(batch, excluded), Ask(batch, None)]
    first, second = ranker.in_turn(asks, 10)
    found = first.best(ranker.weights, 10)
    assert torch.equal(found.items, expected.items)
    torch.testing.assert_close(found.scores, expected.scores, **CLOSE)
    assert torch.equal(second.best(ranker.weights, 10).items, ranker.best(batch, 10).items)
    short = first.shortlist(N_ITEMS)
    assert torch.equal(short.best(ranker.weights, 10).items, expected.items)
    assert (first.shortlist(4).items > 0).sum(dim=1).max() <= 4 * len(models)


def test_one_member_is_in_memory_when_they_rank_in_turn(batch):  # noqa: F811
    made, alive = [0], set()

    class Model:
        def __init__(self):
            made[0] += 1
            self.number, model = made[0], logits(made[0])
            self.ranker, self.fields = model.ranker, FIELDS
            self.max_history, self.precision, self.itself = 50, "fp32", self  # a circle
            alive.add(self.number)
            assert len(alive) == 1

        def __del__(self):
            alive.discard(self.number)

    members = [Member(name, 1.0, Model) for name in "abc"]
    ranker = EnsembleRanker(members, FIELDS, N_ITEMS + 1, candidates=12, device=torch.device("cpu"))
    list(ranker.in_turn([Ask(batch, None)] * 3, 10))
    assert made[0] >= 3 and not alive


def test_rows_end_in_item_0_when_too_few_items_are_left(models, batch):  # noqa: F811
    ranker = joined(models)
    rows = torch.zeros(N_ITEMS - 2, dtype=torch.long)
    excluded = rows, torch.arange(3, N_ITEMS + 1)  # the first row keeps items 1 and 2
    ranking = ranker.best(batch, 5, excluded)
    assert sorted(ranking.items[0].tolist()) == [0, 0, 0, 1, 2]
    assert ranking.scores[0, 2:].isneginf().all() and ranking.scores[1:].isfinite().all()
    assert ranker.score_all(batch, excluded)[excluded].isneginf().all()


def test_member_sees_the_last_items_that_it_can(batch):  # noqa: F811
    history, length = batch[FIELDS.history], batch[FIELDS.length]
    cut, counts = last_items(history, length, 3)
    assert counts.tolist() == [1, 3, 3] and cut.shape == (3, 3)
    assert cut[0].tolist() == [int(history[0, 0]), 0, 0]
    assert cut[2].tolist() == history[2, 3:6].tolist()
    models = KINDS["mixed"]()
    models[0].max_history = 3
    cut = Interaction({FIELDS.history: cut, FIELDS.length: counts})
    found = joined([models[0]], [1.0]).best(batch, 5)
    assert torch.equal(found.items, joined([models[0]], [1.0]).best(cut, 5).items)


def test_union_has_each_item_once():
    found = union([torch.tensor([[3, 1, 0], [2, 0, 0]]), torch.tensor([[1, 4, 5], [2, 0, 0]])])
    assert [sorted(row) for row in found.tolist()] == [[1, 3, 4, 5], [0, 0, 0, 2]]
