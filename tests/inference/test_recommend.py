"""Recommending from Python: what the evaluator scored, after histories of tokens or of users."""

import numpy as np
import pytest
import torch

import recbole_etegrec
from recbole_etegrec.decoding import RANKERS
from recbole_etegrec.errors import UserError
from recbole_etegrec.evaluation.evaluate import collect_rankings
from recbole_etegrec.inference import Catalogue, recommend
from recbole_etegrec.inference.histories import split_histories, whole_histories
from recbole_etegrec.inference.recommend import rank
from tests.data.test_presplit import NAMES, histories_of_users, write_twins
from tests.helpers import small_config, small_data, small_model

MODELS = ("ETEGRecLlama", "ETEGRec", "TIGER")
SPLITS = ("valid", "test")


@pytest.fixture(scope="module")
def model(tiny_data):
    return small_model(small_config(tiny_data))[0]


@pytest.fixture(scope="module")
def dataset(tiny_data):
    """The whole dataset; its split has been made."""
    return small_data(small_config(tiny_data))[0]


@pytest.fixture(scope="module")
def histories(dataset) -> list[list[str]]:
    """All items of some users, the first of whom is longer than the model sees."""
    table = dataset.inter_feat
    users, items = table["user_id"].numpy(), table["item_id"].numpy()
    tokens = dataset.field2id_token["item_id"]
    found = [tokens[items[users == user]].tolist() for user in np.unique(users)]
    return sorted(found, key=len, reverse=True)[:20]


def tokens_of(rankings) -> list[list[str]]:
    return [[found.item for found in ranking] for ranking in rankings]


def scores_of(rankings) -> torch.Tensor:
    return torch.tensor([[found.log_probability for found in ranking] for ranking in rankings])


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_rank_gives_what_the_evaluator_scored_when_rows_are_of_a_split(name, exclude, tiny_data):
    config = small_config(tiny_data, model=name, exclude_history=exclude, eval_batch_size=16)
    config["metrics"] = ["Recall", "ItemCoverage"]  # the second has the collector keep the items
    model, loaders = small_model(config)
    for split, loader in zip(SPLITS, loaders[1:], strict=True):
        collected = collect_rankings(model, loader, loaders[0]._dataset, config)
        users, rows = split_histories(loaders, split, exclude)
        ranking = rank(model, rows, np.arange(len(users)), 20, batch_size=16)
        assert len(users) > 50
        assert torch.equal(ranking.items, collected.get("rec.items"))
        scores = [
            model.ranker.score_all(interaction, excluded).topk(20).values
            for interaction, excluded, *_ in loader
        ]
        assert torch.equal(ranking.scores, torch.cat(scores))


def test_split_histories_remove_what_the_evaluator_would_when_only_the_caller_wants_it(tiny_data):
    given = small_data(small_config(tiny_data))[1]
    wanted = small_data(small_config(tiny_data, exclude_history=True))[1]
    for number, split in enumerate(SPLITS, start=1):
        users, rows = split_histories(given, split, exclude=True)
        ((_, expected, *_),) = wanted[number]  # all rows are one batch
        found = rows.batch(np.arange(len(users)))[1]
        assert len(expected[0]) > 400
        assert all(map(torch.equal, found, expected))


def test_split_histories_are_ranked_over_all_items_when_the_evaluation_samples_them(tiny_data):
    values = {"eval_args": {"mode": {"valid": "uni10", "test": "uni10"}}}
    model, sampled = small_model(small_config(tiny_data, **values))
    full = small_data(small_config(tiny_data))[1]
    found = []
    for loaders in (sampled, full):  # RecBole orders the one by user
        users, rows = split_histories(loaders, "test", exclude=False)
        items = rank(model, rows, np.arange(len(users)), 20, batch_size=64).items.tolist()
        found.append(dict(zip(users, items, strict=True)))
    assert len(found[0]) > 50 and found[0] == found[1]


@pytest.mark.parametrize("exclude", [True, False])
def test_recommend_gives_what_full_ranking_gives_when_beams_are_enough(exclude, tiny_data):
    """And beam and exact ranking agree, whatever histories share a batch."""
    config = small_config(tiny_data, num_beams=40)
    model, _ = small_model(config)
    catalogue = Catalogue([f"i{n}" for n in range(model.n_items)])
    histories = [["i3"], ["i1", "i2", "i3", "i4"], ["i9", "i9"], ["i7", "i8", "i40", "i5", "i6"]]
    beam = recommend(model, catalogue, histories, 15, exclude_history=exclude)
    model.ranker = RANKERS["exact"](model.recommender, model.codes, model.fields)
    exact = recommend(model, catalogue, histories, 15, exclude_history=exclude)
    alone = [
        recommend(model, catalogue, [history], 15, exclude_history=exclude)[0]
        for history in histories
    ]
    shuffled = recommend(
        model, catalogue, histories[::-1], 15, exclude_history=exclude, batch_size=3
    )[::-1]
    for other in (exact, alone, shuffled):
        assert tokens_of(other) == tokens_of(beam)
        assert torch.allclose(scores_of(other), scores_of(beam), atol=1e-5, rtol=0)
    for ranking, history in zip(tokens_of(beam), histories, strict=True):
        assert len(set(ranking)) == 15
        assert set(ranking).isdisjoint(history) or not exclude
    values = scores_of(beam)
    assert (values.diff(dim=1) <= 0).all() and (values < 0).all()


def test_recommend_sees_the_end_of_a_history_when_it_is_too_long(model, dataset, histories):
    long = histories[0]
    assert len(long) == 70
    whole, end = recommend(model, dataset, [long, long[-50:]])
    assert whole == end
    removed = recommend(model, dataset, [long], 40, exclude_history=True)[0]
    assert {found.item for found in removed}.isdisjoint(long)  # those that it does not see, too
    assert len(removed) == 40 - len(set(long))


def test_recommend_gives_all_there_is_when_k_is_more(model, dataset, histories):
    rankings = recommend(model, dataset, histories, 100, exclude_history=True)
    for ranking, history in zip(rankings, histories, strict=True):
        assert len(ranking) == 40 - len(set(history))
        assert np.isfinite([found.log_probability for found in ranking]).all()
    assert recommend(model, dataset, []) == []


def test_recommend_refuses_in_one_line_when_histories_are_not_to_be_used(model, dataset):
    other = Catalogue(["[PAD]", "a"])
    for items, histories, k, message in (
        (dataset, [["i1"], []], 10, "number 1 is empty"),
        (dataset, [["i1", "x"], ["[PAD]", "x", "y"]], 10, "does not know: x, [PAD], y"),
        (dataset, [["i399"]], 10, "does not know: i399; did you mean 'i3"),
        (dataset, ["i1"], 10, "'i1' is not a list"),
        (dataset, [["i1"]], 0, "k (0)"),
        (other, [["a"]], 10, "1 of them, but the model has 40"),
    ):
        with pytest.raises(UserError) as refusal:
            recommend(model, items, histories, k)
        assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_catalogue_tells_known_from_unknown_when_asked_for_both():
    catalogue = Catalogue(["[PAD]", "a", "b"], {"a": "The A", "b": ""})
    assert catalogue.find(["b", "c", "a", "[PAD]", "c", "b"]) == ([2, 1, 2], ["c", "[PAD]"])
    assert catalogue.titles == [None, "The A", None]
    assert [catalogue.name(item) for item in (1, 2)] == ["The A", "b"]
    assert len(catalogue) == 3


def test_whole_histories_hold_all_a_user_did_when_none_was_held_out(model, dataset, histories):
    users, whole = whole_histories(model, dataset, exclude=True)
    assert len(users) == 60  # those too short to be tested, too
    interaction, (rows, items) = whole.batch(np.arange(len(users)))
    tokens = dataset.field2id_token["item_id"]
    seen, removed = [], [set() for _ in users]
    for row, length in zip(interaction["item_id_list"], interaction["item_length"], strict=True):
        assert (row[length:] == 0).all()
        seen.append(tokens[row[:length]].tolist())
    for row, item in zip(rows.tolist(), items.tolist(), strict=True):
        assert tokens[item] not in removed[row]
        removed[row].add(tokens[item])
    for history in histories:
        row = seen.index(history[-50:])
        assert removed[row] == set(history)


@pytest.mark.parametrize("plain", [False, True])
def test_whole_histories_are_the_same_when_the_files_are_split_already(plain, tmp_path):
    write_twins(tmp_path, histories_of_users(), plain)
    found = []
    for name, more in (("whole", {}), ("split", {"benchmark_filename": NAMES})):
        config = small_config(str(tmp_path), name, **more)
        dataset, _ = small_data(config)
        users, whole = whole_histories(small_model(config)[0], dataset, exclude=False)
        items = dataset.field2id_token["item_id"]
        rows = whole.batch(np.arange(len(users)))[0]["item_id_list"].numpy()
        found.append({u: items[row].tolist() for u, row in zip(users, rows, strict=True)})
    assert len(found[0]) == 40
    assert found[0] == found[1]


def test_package_has_the_functions_when_they_are_asked_for():
    assert recbole_etegrec.recommend is recommend
    assert recbole_etegrec.Catalogue is Catalogue
