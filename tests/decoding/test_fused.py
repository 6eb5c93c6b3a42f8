"""Ranking by codes and item head together, against scores that are added by hand."""

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_etegrec.decoding import ExactScores, FusedRanker, HeadRanker
from recbole_etegrec.evaluation.evaluate import evaluate, evaluate_each
from tests.decoding.test_rankers import FIELDS, N_ITEMS, batch  # noqa: F401
from tests.helpers import small_config, small_item_codes, small_model, small_recommender

CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture
def parts():
    return small_recommender(code_num=12, head_items=N_ITEMS + 1), small_item_codes(
        n_items=N_ITEMS, code_num=12
    )


def fused(parts, candidates: int = N_ITEMS, weight: float | None = 1.5) -> FusedRanker:
    return FusedRanker(*parts, FIELDS, candidates=candidates, item_score_weight=weight)


def by_hand(ranker: FusedRanker, interaction: Interaction) -> torch.Tensor:
    """Fused scores of all items ``[B, N]``."""
    history = ranker.encode(interaction)
    codes = ExactScores(ranker.recommender, ranker.codes.trie)(history)
    return codes + 1.5 * ranker.recommender.item_head.log_probs(history.query)


def test_fused_ranking_is_exact_when_candidates_cover_the_catalogue(parts, batch):  # noqa: F811
    ranker = fused(parts)
    expected = by_hand(ranker, batch)
    torch.testing.assert_close(ranker.score_all(batch), expected, **CLOSE)
    ranking = ranker.best(batch, 10)
    scores, items = expected.topk(10)
    assert torch.equal(ranking.items, items)
    torch.testing.assert_close(ranking.scores, scores, **CLOSE)
    every = torch.arange(1, N_ITEMS + 1).expand(3, -1)
    torch.testing.assert_close(ranker.score(batch, every), expected[:, 1:], **CLOSE)


def test_fused_ranking_reorders_what_the_head_proposes(parts, batch):  # noqa: F811
    ranker, head = fused(parts, candidates=8), HeadRanker(*parts, FIELDS)
    found, proposed = ranker.best(batch, 5), head.best(batch, 8)
    for items, ranked in zip(proposed.items.tolist(), found.items.tolist(), strict=True):
        assert set(ranked) <= set(items) and len(set(ranked)) == 5
    expected = by_hand(ranker, batch).gather(1, proposed.items).topk(5).values
    torch.testing.assert_close(found.scores, expected, **CLOSE)


def test_candidates_are_enough_when_histories_are_excluded(parts, batch):  # noqa: F811
    ranker = fused(parts, candidates=5)
    best = HeadRanker(*parts, FIELDS).best(batch, 10).items
    excluded = torch.arange(3).repeat_interleave(10), best.flatten()  # all that it would propose
    found = ranker.best(batch, 5, excluded)
    assert found.scores.isfinite().all()
    for row in range(3):
        assert not set(found.items[row].tolist()) & set(best[row].tolist())


def test_items_without_codes_are_not_proposed(parts, batch):  # noqa: F811
    ranker = fused(parts, candidates=6)
    gone = int(ranker.best(batch, 1).items[0])
    codes = ranker.codes
    rest = [item for item in range(1, N_ITEMS + 1) if item != gone]
    codes.trie = type(codes.trie)(codes.table[rest], torch.tensor(rest))
    assert not (ranker.best(batch, 6).items == gone).any()
    assert ranker.score_all(batch)[:, gone].isneginf().all()


def test_trials_rank_as_rankers_of_their_weights(parts, batch):  # noqa: F811
    ranker = fused(parts, candidates=9, weight=None)
    assert ranker.weight == 2 and fused(parts).trials() == []
    encoded = []
    encode = FusedRanker.encode
    for trial in ranker.trials():
        trial.encode = lambda interaction, t=trial: (encoded.append(1), encode(t, interaction))[1]
        alone = fused(parts, candidates=9, weight=trial.weight).best(batch, 5)
        together = trial.best(batch, 5)
        assert torch.equal(alone.items, together.items)
        ranker.take(trial.chosen)
        assert ranker.weight == trial.weight
    assert len(encoded) == 1  # for all weights
    given = fused(parts)
    given.take({"item_score_weight": 9.0})
    assert given.weight == 1.5 and given.chosen == {}


def test_predict_and_sampled_evaluation_give_the_sum_of_the_parts(tiny_data):
    values = {"item_head": True, "item_score_weight": 2.0, "candidates": 20}
    config = small_config(tiny_data, **values, eval_args={"mode": "uni20"})
    model, loaders = small_model(config)
    torch.nn.init.normal_(model.recommender.item_head.free, std=0.3)
    rows = loaders.test._dataset[torch.arange(6)]
    history = model.ranker.encode(rows)
    items = rows["item_id"].unsqueeze(1)
    parts = model.ranker.parts(history, items)
    assert [part.weight for part in parts.values()] == [1.0, 2.0]
    total = parts["codes"].log_probs + 2 * parts["item head"].log_probs
    torch.testing.assert_close(model.predict(rows).unsqueeze(1), total, **CLOSE)
    interaction, row, *_ = next(iter(loaders.test))
    from recbole_etegrec.evaluation.evaluate import _score_sampled

    sampled = _score_sampled(model, model.ranker, interaction, row)
    expected = model.predict(interaction)
    torch.testing.assert_close(sampled[row, interaction["item_id"]], expected, **CLOSE)


def test_each_ranker_is_measured_as_it_would_be_alone(tiny_data):
    config = small_config(tiny_data, item_head=True, candidates=20)
    model, loaders = small_model(config)
    torch.nn.init.normal_(model.recommender.item_head.free, std=0.3)
    data = loaders.valid, loaders.train._dataset, config
    trials = model.ranker.trials()
    results = evaluate_each(model, trials, *data)
    for trial, result in zip(trials, results, strict=True):
        model.ranker.take(trial.chosen)
        assert evaluate(model, *data) == result
    assert len({result["ndcg@10"] for result in results}) > 1
