"""What a run with an item head gives to those who use it: one score everywhere."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from recbole_etegrec import export_run, load_exported, load_run, run
from recbole_etegrec.cli import main
from recbole_etegrec.decoding import RANKERS
from recbole_etegrec.errors import UserError
from recbole_etegrec.inference import explain, recommend
from recbole_etegrec.serve.answers import Answers, Query
from tests.helpers import small_values
from tests.inference.test_new_items import folder, histories, new  # noqa: F401

HISTORIES = [["i3"], ["i5", "i6", "i7", "i1"], ["i30", "i2"] * 40]


@pytest.fixture(scope="module")
def trained(folder) -> Path:  # noqa: F811
    run_dir = folder / "run"
    values = {"item_embedding": "file", "item_embedding_file": str(folder / "v.npy")}
    values |= {"item_head": True, "candidates": 20, "finetune_epochs": 3, "run_dir": str(run_dir)}
    run("ETEGRecLlama", "circle", config_dict=small_values(str(folder), **values))
    return run_dir


@pytest.fixture
def run_dir(trained, tmp_path) -> str:
    """The directory of a finished run, to change at will."""
    return str(shutil.copytree(trained, tmp_path / "run"))


def scores_of(rows: list) -> torch.Tensor:
    return torch.tensor([[found.log_probability for found in row] for row in rows])


def test_weight_is_chosen_on_validation_kept_and_taken_up_again(trained):
    kept = json.loads((trained / "best" / "model.json").read_text())["ranking"]
    config, model, *_ = load_run(str(trained))
    assert config["ranking"] is None and type(model.ranker) is RANKERS["fused"]
    assert kept == {"item_score_weight": model.ranker.weight} == model.ranker.chosen
    _, other, *_ = load_run(str(trained), {"item_score_weight": 7})
    assert other.ranker.weight == 7
    for name in ("beam", "exact", "head"):
        _, other, *_ = load_run(str(trained), {"ranking": name})
        assert type(other.ranker) is RANKERS[name]


def test_explanation_shows_both_parts_of_the_score(trained):
    _, model, dataset, *_ = load_run(str(trained))
    weight = model.ranker.weight
    for found in recommend(model, dataset, HISTORIES[1:2], 5)[0]:
        shown = explain(model, dataset, HISTORIES[1], found.item)
        assert shown.score == pytest.approx(found.log_probability, abs=1e-4)
        (one, codes), (two, head) = shown.parts.values()
        assert (one, two) == (1, weight) and list(shown.parts) == ["codes", "item head"]
        assert shown.log_probability == pytest.approx(codes, abs=1e-4)
        assert shown.score == pytest.approx(codes + weight * head)
        line = str(shown).splitlines()[2]
        parts = f"1 * {codes:.3f} (codes) + {weight:g} * {head:.3f} (item head)"
        assert line == f"score {shown.score:.3f} = {parts}"


def test_server_answers_with_the_score_and_its_parts(trained):
    _, model, dataset, *_ = load_run(str(trained))
    answers = Answers(model, dataset)
    history = [answers.catalogue.ids([token])[0] for token in HISTORIES[1]]
    (items,) = answers([Query(history, 3, False, True)])
    found = recommend(model, dataset, HISTORIES[1:2], 3)[0]
    assert [item["item"] for item in items] == [one.item for one in found]
    for item, one in zip(items, found, strict=True):
        parts = item["parts"].values()
        total = sum(part["weight"] * part["log_probability"] for part in parts)
        assert item["log_probability"] == pytest.approx(one.log_probability, abs=1e-4)
        assert total == pytest.approx(item["log_probability"], abs=1e-4)


def test_added_items_are_scored_by_content_and_no_other_score_changes(run_dir, new):  # noqa: F811
    _, before, *_ = load_run(run_dir)
    items, embeddings = new
    assert main(["add-items", run_dir, f"--items={items}", f"--embeddings={embeddings}"]) == 0
    _, after, dataset, *_ = load_run(run_dir)
    known = torch.arange(1, before.n_items).expand(6, -1)
    scores = [model.ranker.score(histories(), known) for model in (before, after)]
    torch.testing.assert_close(*scores, atol=1e-5, rtol=0)
    head = after.recommender.item_head
    vectors = head.all_vectors()[before.n_items :]
    expected = head.project(after.item_embedding[before.n_items :])
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    found = recommend(after, dataset, HISTORIES, 43)
    assert all({"n1", "n2", "n3"} <= {one.item for one in row} for row in found)
    recommend(after, dataset, [["i3", "n1"]], 3)  # its vector enters, too


@pytest.mark.parametrize("added", [False, True])
def test_exported_model_ranks_as_the_run(added, run_dir, new, tmp_path):  # noqa: F811
    if added:
        items, embeddings = new
        main(["add-items", run_dir, f"--items={items}", f"--embeddings={embeddings}"])
    export_run(run_dir, str(tmp_path / "out"))
    _, model, dataset, *_ = load_run(run_dir)
    exported, catalogue = load_exported(tmp_path / "out")
    assert exported.ranker.weight == model.ranker.weight
    for exclude in (False, True):
        own = recommend(model, dataset, HISTORIES, 20, exclude_history=exclude)
        theirs = recommend(exported, catalogue, HISTORIES, 20, exclude_history=exclude)
        assert [[r.item for r in row] for row in own] == [[r.item for r in row] for row in theirs]
        torch.testing.assert_close(scores_of(own), scores_of(theirs), atol=1e-4, rtol=0)


def test_run_is_refused_in_one_line_when_its_parts_are_others(trained):
    with pytest.raises(UserError, match="differ in parts, first recommender.item_head") as refusal:
        load_run(str(trained), {"item_head": False})
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="ranking .fused. needs an item head"):
        load_run(str(trained), {"item_head": False, "ranking": "fused"})
