"""Which items leave the ranking: the same for every model, and what RecBole removes itself."""

import pytest
import torch
from recbole.data import create_dataset, data_preparation

from recbole_etegrec.config import Config
from recbole_etegrec.data.seen_items import settle_history
from recbole_etegrec.decoding import RANKERS
from recbole_etegrec.errors import UserError
from recbole_etegrec.quick_start import run
from tests.helpers import small_config, small_data, small_model

BASELINE = {"show_progress": False, "state": "WARNING", "train_batch_size": 256, "epochs": 1}


def histories(loader) -> dict[int, set[int]]:
    """The items that a loader takes out of each user's ranking."""
    removed: dict[int, set[int]] = {}
    for interaction, (rows, items), *_ in loader:
        users = interaction["user_id"]
        for user in users.tolist():
            removed[user] = set()
        for user, item in zip(users[rows].tolist(), items.tolist(), strict=True):
            assert item not in removed[user]
            removed[user].add(item)
    return removed


def baseline_loaders(model: str, data_path: str, **more) -> tuple:
    config = Config(model, "tiny", config_dict={**BASELINE, "data_path": data_path, **more})
    loaders = data_preparation(config, create_dataset(config))
    return loaders if "exclude_history" not in more else settle_history(config, loaders)


def test_every_model_removes_what_recbole_removes_when_history_is_excluded(tiny_data):
    by_recbole = [histories(loader) for loader in baseline_loaders("BPR", tiny_data)[1:]]
    assert sum(len(items) for items in by_recbole[1].values()) > 300
    loaders = {
        "ETEGRecLlama": small_data(small_config(tiny_data, exclude_history=True))[1],
        "BPR": baseline_loaders("BPR", tiny_data, exclude_history=True),
        "SASRec": baseline_loaders("SASRec", tiny_data, exclude_history=True),
    }
    for name, (_, valid, test) in loaders.items():
        for phase, expected in zip((valid, test), by_recbole, strict=True):
            removed = histories(phase)
            assert len(removed) > 50
            assert removed == {user: expected[user] for user in removed}, name


def test_no_model_removes_anything_when_history_is_kept(tiny_data):
    for loader in (
        *baseline_loaders("BPR", tiny_data, exclude_history=False)[1:],
        *small_data(small_config(tiny_data, exclude_history=False))[1][1:],
    ):
        assert all(history is None for _, history, *_ in loader)


@pytest.mark.parametrize("ranking", RANKERS)
def test_model_ranks_no_item_of_the_history_when_it_is_excluded(ranking, tiny_data):
    values = {"exclude_history": True, "ranking": ranking, "candidates": 20}
    values["item_head"] = ranking in ("fused", "head")
    model, loaders = small_model(small_config(tiny_data, **values))
    for interaction, excluded, *_ in loaders.test:
        scores = model.ranker.score_all(interaction, excluded)
        assert scores[excluded].isneginf().all()
        items, values = model.ranker.best(interaction, 5, excluded)
        for row, item in zip(*excluded, strict=True):
            assert item not in items[row]
        assert torch.equal(scores.gather(1, items), values)


def test_run_takes_the_rule_when_the_model_is_sequential(tiny_data, tmp_path):
    results = []
    for exclude in (None, False, True):
        values = {**BASELINE, "data_path": tiny_data, "run_dir": str(tmp_path / str(exclude))}
        values |= {"exclude_history": exclude, "topk": [5, 10], "learning_rate": 0.01}
        results.append(run("GRU4Rec", "tiny", config_dict=values)["test_result"])
    assert results[0] == results[1] != results[2]


def test_config_refuses_a_rule_that_is_no_boolean(tiny_data):
    with pytest.raises(UserError, match=r"exclude_history \(maybe\) must be True or False"):
        small_config(tiny_data, exclude_history="maybe")
