"""Rankings with items that were not ranked, against values worked out by hand."""

import math

import pytest
import torch
from recbole.evaluator import Evaluator

from recbole_etegrec.config import Config
from recbole_etegrec.evaluation.collector import RankingCollector
from recbole_etegrec.evaluation.evaluate import evaluate
from tests.helpers import small_config, small_model

INF = float("inf")


def metrics_of(
    scores: list[list[float]],
    targets: list[int],
    metrics: list[str],
    counts: dict[str, object] | None = None,
) -> dict[str, float]:
    """RecBole's metrics at 1 and 3, one target a row, collected in batches of two rows."""
    values = {"metrics": metrics, "topk": [1, 3], "valid_metric": f"{metrics[0]}@3"}
    config = Config("Pop", "ml-100k", config_dict=values)
    collector = RankingCollector(config)
    for name, value in (counts or {}).items():
        collector.data_struct.set(name, value)
    for start in range(0, len(scores), 2):
        rows = torch.tensor(scores[start : start + 2])
        wanted = torch.tensor(targets[start : start + 2])
        collector.eval_batch_collect(rows, None, torch.arange(len(rows)), wanted)
    return dict(Evaluator(config).evaluate(collector.get_data_struct()))


def test_collector_gives_recboles_metrics_when_all_items_are_ranked():
    scores = [[-INF, 0.1, 0.9, 0.5, 0.3], [-INF, 0.4, 0.3, 0.2, 0.1], [-INF, 0.1, 0.2, 0.3, 0.4]]
    result = metrics_of(scores, [3, 4, 4], ["Recall", "NDCG", "MRR"])
    # Ranks 2, 4 and 1.
    assert result["recall@1"] == pytest.approx(1 / 3, abs=1e-4)
    assert result["recall@3"] == pytest.approx(2 / 3, abs=1e-4)
    assert result["mrr@3"] == pytest.approx((1 / 2 + 1) / 3, abs=1e-4)
    assert result["ndcg@3"] == pytest.approx((1 / math.log2(3) + 1) / 3, abs=1e-4)


def test_collector_counts_no_hit_when_no_target_is_ranked():
    # Five items, of which one or none has a score: any top 3 holds most of the others.
    scores = [[-INF] * 5 for _ in range(6)]
    for row in scores[:3]:
        row[1] = 0.5
    result = metrics_of(scores, [2, 3, 4, 2, 3, 4], ["Recall", "NDCG", "MRR"])
    assert set(result.values()) == {0.0}


def test_collector_counts_hits_among_ranked_items_when_others_are_not():
    scores = [[-INF, -INF, 0.5, -INF, 0.7], [-INF, 0.5, -INF, -INF, -INF]]
    result = metrics_of(scores, [2, 3], ["Recall", "MRR"])
    assert result["recall@3"] == 0.5
    assert result["mrr@3"] == 0.25


def test_collector_counts_misses_when_there_are_fewer_items_than_the_largest_k():
    result = metrics_of([[-INF, 0.5], [-INF, 0.5]], [1, 0], ["Recall", "MRR"])
    assert result["recall@1"] == result["recall@3"] == result["mrr@3"] == 0.5


def test_collector_serves_metrics_of_items_when_counts_are_no_tensors():
    scores = [[-INF, 0.9, 0.8, 0.7, 0.1], [-INF, 0.9, 0.7, 0.8, 0.1]]
    counts = {"data.num_items": 5, "data.count_items": {1: 10, 2: 4, 3: 1, 4: 1}}
    names = ["ItemCoverage", "AveragePopularity", "GiniIndex", "ShannonEntropy", "TailPercentage"]
    result = metrics_of(scores, [1, 1], names, counts)
    assert result["itemcoverage@1"] == 1 / 5
    assert result["itemcoverage@3"] == 3 / 5
    assert result["averagepopularity@1"] == 10
    assert result["averagepopularity@3"] == 5
    assert result["shannonentropy@3"] == pytest.approx(math.log(3) / 3, abs=1e-4)
    assert result["tailpercentage@3"] == pytest.approx(1 / 3, abs=1e-4)
    # Counts 0 0 2 2 2 of five items: sum of (2i - 6) * count over 5 * 6.
    assert result["giniindex@3"] == pytest.approx((0 + 4 + 8) / 30, abs=1e-4)


def test_collector_gives_the_same_when_batches_are_taken_and_put_into_another():
    config = Config(
        "Pop",
        "ml-100k",
        config_dict={"metrics": ["Recall", "GAUC"], "topk": 1, "valid_metric": "Recall@1"},
    )
    whole, other, last = (RankingCollector(config) for _ in range(3))
    generator, taken = torch.Generator().manual_seed(0), []
    for _ in range(3):
        scores = torch.rand(4, 6, generator=generator)
        scores[:, 0] = -INF
        batch = (scores, None, torch.arange(4), torch.tensor([1, 2, 3, 4]))
        whole.eval_batch_collect(scores.clone(), *batch[1:])
        other.eval_batch_collect(*batch)
        taken.append(other.take_batch())
        assert other.take_batch() == {}
    for batch in taken:
        last.put_batch(batch)
    expected, found = whole.get_data_struct(), last.get_data_struct()
    for name in ("rec.topk", "rec.meanrank"):
        assert torch.equal(found.get(name), expected.get(name))
    assert Evaluator(config).evaluate(found) == Evaluator(config).evaluate(expected)


def test_collector_keeps_counts_when_it_is_read_twice():
    config = Config(
        "Pop",
        "ml-100k",
        config_dict={"metrics": ["ItemCoverage"], "topk": 1, "valid_metric": "ItemCoverage@1"},
    )
    collector = RankingCollector(config)
    collector.data_struct.set("data.num_items", 3)
    for _ in range(2):
        scores = torch.tensor([[-INF, 0.1, 0.2]])
        collector.eval_batch_collect(scores, None, torch.tensor([0]), torch.tensor([1]))
        collected = collector.get_data_struct()
        assert collected.get("data.num_items") == 3
        assert collected.get("rec.items").tolist() == [[2]]


def test_collector_makes_the_same_of_best_items_as_of_all_scores_when_positives_vary():
    metrics = ["Recall", "NDCG", "MRR", "Precision", "ItemCoverage"]
    config = Config(
        "Pop", "ml-100k", config_dict={"metrics": metrics, "topk": [1, 3], "valid_metric": "MRR@3"}
    )
    scores = torch.tensor(
        [[-INF, 0.1, 0.9, 0.5, 0.3], [-INF, -INF, 0.5, -INF, 0.7], [-INF, 0.1, 0.2, 0.3, 0.4]]
    )
    items = torch.tensor([[2, 3, 4], [4, 2, 0], [4, 3, 2]])
    # The last item of the third row is no positive of its own, but one of another row.
    rows, wanted = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([3, 1, 3, 4, 3, 1])
    whole, short = RankingCollector(config), RankingCollector(config)
    assert not whole.needs_scores
    whole.eval_batch_collect(scores, None, rows, wanted)
    short.collect_best_items(items, None, rows, wanted)
    for name in ("rec.topk", "rec.items"):
        assert torch.equal(whole.data_struct.get(name).int(), short.data_struct.get(name).int())


def test_collector_asks_for_scores_when_a_metric_is_of_all_ranks():
    values = {"metrics": ["GAUC"], "topk": [3], "valid_metric": "GAUC"}
    assert RankingCollector(Config("Pop", "ml-100k", config_dict=values)).needs_scores


@pytest.mark.parametrize("exclude", [False, True])
def test_evaluation_gives_the_same_when_scores_of_all_items_are_never_made(
    tiny_data, monkeypatch, exclude
):
    config = small_config(tiny_data, exclude_history=exclude, metrics=["Recall", "NDCG", "MRR"])
    model, loaders = small_model(config)
    with monkeypatch.context() as patched:
        patched.setattr(RankingCollector, "needs_scores", True)
        expected = evaluate(model, loaders.test, loaders.train._dataset, config)
    monkeypatch.setattr(model.ranker, "score_all", None)  # would fail if called
    assert evaluate(model, loaders.test, loaders.train._dataset, config) == expected
    assert expected["recall@20"] > 0
