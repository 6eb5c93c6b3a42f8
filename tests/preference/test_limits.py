"""What is seen of groups, and which limits it passes."""

import pytest
import torch

from recbole_etegrec.preference import Guard, Signals
from recbole_etegrec.preference.guard import told, wider
from tests.helpers import small_config

CPU = torch.device("cpu")


def groups(moved: list[list[float]], alive: list[bool], found: list[bool]) -> tuple:
    """Groups whose candidates have moved by some nats a code; none where that is not a number."""
    away = torch.tensor(moved)
    there = ~away.isnan()
    reference = away.nan_to_num(0.0).unsqueeze(2).expand(-1, -1, 4)
    return torch.zeros_like(reference), reference, there, torch.tensor(alive), torch.tensor(found)


def test_signals_are_shares_of_groups_and_means_of_candidates():
    signals, none = Signals(CPU), float("nan")
    moved = [[0.0, 0.1, none], [0.2, 0.0, 0.0], [none, none, none]]
    signals.add(*groups(moved, alive=[True, False, True], found=[True, False, True]))
    found = signals.summary(signals.sums.tolist())
    away = torch.tensor([0.0, 0.1, 0.2, 0.0, 0.0])
    assert found["dead_groups"] == found["found_targets"] == 0.5
    assert found["kl"] == pytest.approx(float((away.exp() - away - 1).mean()), rel=1e-5)
    largest = float((away.exp() - away - 1).max())
    assert largest <= found["kl_tail"] < 1.3 * largest


def test_signals_of_parts_add_up_to_those_of_the_whole():
    moved, alive, found = [[0.1, 0.4], [0.0, 1.0]], [True, False], [True, True]
    whole = Signals(CPU)
    whole.add(*groups(moved, alive, found))
    first = Signals(CPU)
    first.add(*groups(moved[:1], alive[:1], found[:1]))
    second = Signals(CPU, first.sums.tolist())
    second.add(*groups(moved[1:], alive[1:], found[1:]))
    torch.testing.assert_close(second.sums, whole.sums)


def test_guard_names_the_limits_that_are_passed():
    guard = Guard(max_kl=0.5, max_dead=0.9, min_coverage=0.8, min_recall=0.95)
    before = {"itemcoverage@10": 0.5, "recall@50": 0.4}
    fine = {"itemcoverage@10": 0.41, "recall@50": 0.39}
    assert guard.faults(before, fine, {"kl": 0.4, "dead_groups": 0.9}) == []
    assert guard.faults(before, fine, {}) == []
    bad = guard.faults(
        before, {"itemcoverage@10": 0.3, "recall@50": 0.37}, {"kl": 0.6, "dead_groups": 1.0}
    )
    assert bad == [
        "kl 0.6000 is above 0.5",
        "dead_groups 1.0000 is above 0.9",
        "itemcoverage@10 0.3000 is below 0.8 of 0.5000",
        "recall@50 0.3700 is below 0.95 of 0.4000",
    ]


def test_wider_configuration_has_the_metrics_of_both_once(tiny_data):
    config = small_config(tiny_data, metrics=["ndcg", "MRR"], topk=[3, 10])
    wide = wider(config)
    assert wide["topk"] == [1, 3, 5, 10, 50]
    assert sorted(name.lower() for name in wide["metrics"]) == [
        "itemcoverage",
        "mrr",
        "ndcg",
        "recall",
    ]
    assert config["topk"] == [3, 10] and config["metrics"] == ["ndcg", "MRR"]


def test_metrics_are_told_by_depth():
    result = {f"recall@{k}": k / 100 for k in (1, 5, 10, 50)}
    result |= {"ndcg@10": 0.07, "itemcoverage@10": 0.25, "itemcoverage@1": 0.1}
    assert told(result, items=40) == (
        "recall@1/5/10/50 0.0100/0.0500/0.1000/0.5000, ndcg@10 0.0700, itemcoverage@10 0.2500, "
        "4 distinct items in first place"
    )
