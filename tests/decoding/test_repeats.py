"""What it is worth to an item that it is in the history, where codes are all there is."""

import json

import pytest
import torch

from recbole_etegrec import explain, load_exported, load_run, recommend, run
from recbole_etegrec.cli import main
from recbole_etegrec.decoding import BeamRanker, ExactRanker
from recbole_etegrec.decoding.repeats import REPEAT_SCORES
from tests.conftest import write_interactions
from tests.decoding.test_rankers import FIELDS, N_ITEMS, batch  # noqa: F401
from tests.helpers import small_item_codes, small_recommender, small_values

CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture
def parts():
    return small_recommender(code_num=12), small_item_codes(n_items=N_ITEMS, code_num=12)


def test_items_of_the_history_have_the_score_on_top(parts, batch):  # noqa: F811
    plain = ExactRanker(*parts, FIELDS).score_all(batch)
    for score in (-3.0, 2.0):
        expected = plain.clone()
        for row, items in enumerate(batch[FIELDS.history]):
            expected[row, items[items > 0].unique()] += score
        exact = ExactRanker(*parts, FIELDS, repeat_score=score)
        beam = BeamRanker(*parts, FIELDS, num_beams=N_ITEMS, repeat_score=score)
        torch.testing.assert_close(exact.score_all(batch), expected, **CLOSE)
        best = expected.topk(10)
        for ranker in (exact, beam):
            found = ranker.best(batch, 10)
            assert torch.equal(found.items, best.indices)
            torch.testing.assert_close(found.scores, best.values, **CLOSE)
            torch.testing.assert_close(ranker.score(batch, found.items), best.values, **CLOSE)


def test_trials_search_a_batch_once_and_rank_as_rankers_alone(parts, batch, monkeypatch):  # noqa: F811
    ranker, calls = BeamRanker(*parts, FIELDS, num_beams=12), []
    search = BeamRanker.search
    monkeypatch.setattr(
        BeamRanker, "search", lambda *args, **more: calls.append(1) or search(*args, **more)
    )
    found = [trial.best(batch, 5).items for trial in ranker.trials()]
    assert len(found) == len(REPEAT_SCORES) and len(calls) == 1
    for items, score in zip(found, REPEAT_SCORES, strict=True):
        alone = BeamRanker(*parts, FIELDS, num_beams=12, repeat_score=score)
        assert torch.equal(alone.best(batch, 5).items, items)
    ranker.take({"repeat_score": -4.0})
    assert ranker.chosen == {"repeat_score": -4.0}
    given = BeamRanker(*parts, FIELDS, num_beams=12, repeat_score=-1.0)
    given.take({"repeat_score": -4.0})
    assert given.repeat_score == -1.0 and not given.trials() and not given.chosen


@pytest.mark.parametrize("again", [False, True])
def test_validation_says_what_repeats_are_worth(again, tmp_path, capsys):
    """Users walk over the items in a circle, or to and fro between two of them."""
    walks = [
        [(user + (step % 2 if again else step)) % 24 for step in range(8)] for user in range(96)
    ]
    write_interactions(tmp_path, "walks", walks)
    values = {"item_head": False, "epochs": 0, "finetune_epochs": 2, "exclude_history": False}
    values |= {"run_dir": str(tmp_path / "run")}
    run("ETEGRecLlama", "walks", config_dict=small_values(str(tmp_path), **values))
    _, model, dataset, *_ = load_run(str(tmp_path / "run"))
    assert (model.ranker.repeat_score > 0) if again else (model.ranker.repeat_score < 0)
    description = json.loads((tmp_path / "run" / "best" / "model.json").read_text())
    assert description["ranking"] == model.ranker.chosen
    told = explain(model, dataset, ["i1", "i2"], "i1")
    assert told.parts["in the history"] == (model.ranker.repeat_score, 1.0)
    assert told.score == pytest.approx(told.log_probability + model.ranker.repeat_score, abs=1e-4)
    assert main(["export", str(tmp_path / "run"), f"--out={tmp_path / 'export'}"]) == 0
    exported, names = load_exported(str(tmp_path / "export"), "cpu")
    lists = [recommend(*pair, [["i1", "i2"]], 5) for pair in ((model, dataset), (exported, names))]
    assert [item.item for item in lists[0][0]] == [item.item for item in lists[1][0]]
