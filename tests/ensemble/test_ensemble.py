"""Runs joined by the command: what it refuses, what it writes, and how that is used as a run."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_etegrec import export_run, load_exported, load_run, run
from recbole_etegrec.cli import main
from recbole_etegrec.compare.command import compare
from recbole_etegrec.ensemble.command import ensemble
from recbole_etegrec.ensemble.weights import find_weights
from recbole_etegrec.errors import UserError
from recbole_etegrec.evaluation.evaluate import evaluate
from recbole_etegrec.inference import explain, recommend
from recbole_etegrec.report.compared import compared_runs
from recbole_etegrec.serve.answers import Answers, Query
from tests.helpers import small_values

HISTORIES = [["i3"], ["i5", "i6", "i7", "i1"], ["i30", "i2"] * 40]
QUICK = {"epochs": 0, "finetune_epochs": 2, "topk": [5, 10], "use_gpu": False}


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory) -> dict[str, Path]:
    """Finished runs: a fused one, a beam with another length of histories, and SASRec."""
    folder = tmp_path_factory.mktemp("runs")
    ours = {"fused": {"item_head": True, "candidates": 20}, "beam": {"item_head": False}}
    for seed, (name, more) in enumerate(ours.items()):
        values = {**QUICK, **more, "seed": seed, "run_dir": str(folder / name)}
        if name == "beam":
            values["MAX_ITEM_LIST_LENGTH"] = 20
        run("ETEGRecLlama", "tiny", config_dict=small_values(tiny_data, **values))
    theirs = {"epochs": 2, "show_progress": False, "state": "WARNING", "data_path": tiny_data}
    for name in ("SASRec", "BPR"):
        values = {**theirs, "topk": [5, 10], "use_gpu": False, "run_dir": str(folder / name)}
        run(name, "tiny", config_dict=values)
    return {name: folder / name for name in (*ours, "SASRec", "BPR")}


@pytest.fixture(scope="module")
def joined(runs) -> Path:
    out = runs["fused"].parent / "joined"
    members = [str(runs[name]) for name in ("fused", "SASRec", "beam")]
    ensemble(members, {"out": str(out), "candidates": "20", "weights": "1,0.5,2"})
    return out


def test_scores_are_the_weighted_sums_of_what_the_runs_give_alone(runs, joined):
    _, model, dataset, *_ = load_run(str(joined))
    assert [member.weight for member in model.members] == [1, 0.5, 2]
    found = recommend(model, dataset, HISTORIES, 5)
    catalogue = dataset.field2id_token[dataset.iid_field].tolist()
    histories = [[catalogue.index(token) for token in history] for history in HISTORIES]
    totals = np.zeros((3, 5))
    for name, weight in (("fused", 1), ("SASRec", 0.5), ("beam", 2)):
        _, alone, *_ = load_run(str(runs[name]))
        for row, history in enumerate(histories):
            most = 20 if name == "beam" else 50
            cut = torch.tensor([history[-most:]])
            items = torch.tensor([[catalogue.index(one.item) for one in found[row]]])
            batch = {"item_id_list": cut, "item_length": torch.tensor([cut.shape[1]])}
            totals[row] += weight * scores_alone(name, alone, batch, items)
    given = [[one.log_probability for one in row] for row in found]
    np.testing.assert_allclose(given, totals, atol=1e-4)


def scores_alone(name: str, model, batch: dict, items: torch.Tensor) -> np.ndarray:
    from recbole.data.interaction import Interaction

    if name != "SASRec":
        return model.ranker.score(Interaction(batch), items)[0].detach().numpy()
    history = batch["item_id_list"]
    history = torch.nn.functional.pad(history, (0, 50 - history.shape[1]))
    with torch.no_grad():
        logits = model.full_sort_predict(Interaction({**batch, "item_id_list": history}))
    logits = logits.view(1, -1)
    logits[:, 0] = -torch.inf
    return logits.log_softmax(dim=1)[0, items[0]].numpy()


def test_ensemble_is_measured_as_its_directory_ranks(joined):
    config, model, _, train, valid, test = load_run(str(joined))
    result = json.loads((joined / "result.json").read_text())
    assert evaluate(model, test, train._dataset, config) == result["test_result"]
    assert evaluate(model, valid, train._dataset, config) == result["best_valid_result"]
    model.ranker.prepare()  # members stay, and rank batch by batch
    best = [model.ranker.best(batch, 10, excluded).items for batch, excluded, *_ in test]
    targets = test._dataset.inter_feat["item_id"]
    recall = float((torch.cat(best) == targets.unsqueeze(1)).any(dim=1).float().mean())
    assert recall == pytest.approx(result["test_result"]["recall@10"], abs=1e-4)


def test_one_run_twice_ranks_as_it_does_alone(runs, tmp_path):
    ensemble([str(runs["beam"])] * 2, {"out": str(tmp_path / "e"), "candidates": "20"})
    _, model, dataset, *_ = load_run(str(tmp_path / "e"))
    assert [member.name for member in model.members] == ["beam", "beam (2)"]
    _, alone, *_ = load_run(str(runs["beam"]))
    found, expected = (recommend(one, dataset, HISTORIES, 10) for one in (model, alone))
    assert [[one.item for one in row] for row in found] == [
        [one.item for one in row] for row in expected
    ]


def test_directory_is_used_like_that_of_a_run(joined, tmp_path, capsys):
    commands = [
        ["recommend", str(joined), "--users=u5,u6", "--k=3"],
        ["recommend", str(joined), "--all", "--split=test", f"--out={tmp_path}/top.csv"],
        ["explain", str(joined), "--history=i5,i6"],
        ["report", str(joined), f"--out={tmp_path}/report.html"],
    ]
    for command in commands:
        assert main([*command, "--show_progress=False"]) == 0, capsys.readouterr().err
    assert (tmp_path / "top.csv").read_text().count("\n") == 601
    assert "For whom it is right" in (tmp_path / "report.html").read_text()
    for command in (["codes", str(joined)], ["add-items", str(joined), "--items=x.item"]):
        assert main(command) == 2
        assert "name one of its members" in capsys.readouterr().err


def test_export_ranks_as_the_run_and_refuses_members_of_recbole(runs, joined, tmp_path):
    with pytest.raises(UserError, match="its member SASRec is SASRec of RecBole"):
        export_run(str(joined), str(tmp_path / "model"))
    members = [str(runs["fused"]), str(runs["beam"])]
    ensemble(members, {"out": str(tmp_path / "e"), "candidates": "20", "weights": "1,2"})
    assert "0/model.safetensors" in export_run(str(tmp_path / "e"), str(tmp_path / "model"))
    model, catalogue = load_exported(tmp_path / "model", "cpu")
    _, alive, dataset, *_ = load_run(str(tmp_path / "e"))
    found = recommend(model, catalogue, HISTORIES, 5)
    expected = recommend(alive, dataset, HISTORIES, 5)
    for ours, theirs in zip(found, expected, strict=True):
        assert [one.item for one in ours] == [one.item for one in theirs]
        np.testing.assert_allclose([o[2] for o in ours], [t[2] for t in theirs], atol=1e-4)
    (tmp_path / "model" / "1" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        load_exported(tmp_path / "model")


def test_comparison_has_a_row_of_a_run_that_has_ended(joined, tmp_path, tiny_data):
    values = {"runs": str(joined), "models": "Pop", "dataset": "tiny", "data_path": tiny_data}
    values |= {"out": str(tmp_path / "out"), "use_gpu": "False", "show_progress": "False"}
    table, failed = compare({**values, "topk": "[5,10]", "exclude_history": "both"})
    assert not failed and table.count("| Ensemble joined | 0 |") == 2
    result = json.loads((joined / "result.json").read_text())["test_result"]
    rows = json.loads((tmp_path / "out" / "comparison.json").read_text())["tables"]["kept"]
    means = {name: column["mean"] for name, column in rows[0]["columns"].items()}
    assert all(means[name] == pytest.approx(value, abs=1e-4) for name, value in result.items())
    (p,) = [row["p"] for row in rows if "p" in row]  # against the better of the two
    assert 0 <= p <= 1
    assert compared_runs([str(tmp_path / "out")])[0] == str(joined)


def test_explanation_has_the_part_of_each_member(joined):
    _, model, dataset, *_ = load_run(str(joined))
    (found,) = recommend(model, dataset, HISTORIES[1:2], 1)[0]
    shown = explain(model, dataset, HISTORIES[1], found.item)
    assert list(shown.parts) == ["fused", "SASRec", "beam"]
    assert list(shown.members) == ["fused", "beam"]
    assert shown.score == pytest.approx(found.log_probability, abs=1e-4)
    assert sum(w * value for w, value in shown.parts.values()) == pytest.approx(shown.score)
    for name, member in shown.members.items():
        assert member.score == pytest.approx(shown.parts[name][1], abs=1e-4)
    text = str(shown)
    assert f"score {shown.score:.3f} = 1 * " in text and "(SASRec)" in text
    answers = Answers(model, dataset)
    history = [answers.catalogue.ids([token])[0] for token in HISTORIES[1]]
    ((item,),) = answers([Query(history, 1, False, True)])
    assert list(item["parts"]) == ["fused", "SASRec", "beam"] and item["steps"] == []


def test_finished_ensemble_is_told_again_and_no_other_takes_its_place(runs, joined):
    members = [str(runs[name]) for name in ("fused", "SASRec", "beam")]
    values = {"out": str(joined), "candidates": "20", "weights": "1,0.5,2"}
    before = (joined / "result.json").stat().st_mtime_ns
    assert "ensemble" in ensemble(members, values)
    assert (joined / "result.json").stat().st_mtime_ns == before
    for other in ({"weights": "1,1,1"}, {"candidates": "30"}):
        with pytest.raises(UserError, match="other runs, weights or keys"):
            ensemble(members, {**values, **other})
    with pytest.raises(UserError, match="other runs, weights or keys"):
        ensemble(members[::-1], values)


def test_ensemble_refuses_what_cannot_be_joined(runs, joined, tmp_path):
    from tests.conftest import write_interactions

    fused, out = str(runs["fused"]), {"out": str(tmp_path / "e")}
    data = tmp_path / "data"
    write_interactions(data, "tiny", [[(u + t) % 12 for t in range(6)] for u in range(30)])
    other = {"epochs": 1, "data_path": str(data), "topk": [5, 10], "use_gpu": False}
    other |= {"show_progress": False, "state": "WARNING", "run_dir": str(tmp_path / "other")}
    run("SASRec", "tiny", config_dict=other)
    unfinished = shutil.copytree(fused, tmp_path / "unfinished")
    (unfinished / "result.json").unlink()
    for paths, values, message in (
        ([fused], out, "two runs or more"),
        ([fused, str(runs["BPR"])], out, "BPR ranks for users that it knows"),
        ([fused, str(joined)], out, "an ensemble itself"),
        ([fused, str(tmp_path / "other")], out, "other items than the first member"),
        ([fused, str(unfinished)], out, "only a run that has ended"),
        ([fused, str(tmp_path)], out, "is it the directory of a run"),
        ([fused, fused], {}, "--out=DIR"),
        ([fused, fused], {"out": fused}, "holds a run"),
        ([fused, fused], {"out": str(data)}, "no ensemble's"),
        ([fused, fused], {**out, "weights": "1"}, "1 of them for 2 runs"),
        ([fused, fused], {**out, "weights": "0,-1"}, "must be numbers"),
        ([fused, fused], {**out, "candidates": "5"}, "candidates"),
        ([fused, fused], {**out, "jobs": "2"}, "give --seeds"),
        ([fused, fused], {**out, "item_heat": "2"}, "did you mean 'item_head'"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            ensemble(paths, values)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "e" / "config.yaml").exists()


def test_ensemble_is_refused_when_a_member_has_changed(runs, tmp_path):
    member = shutil.copytree(runs["beam"], tmp_path / "member")
    ensemble([str(member), str(runs["fused"])], {"out": str(tmp_path / "e"), "weights": "1,1"})
    moved = tmp_path / "moved"
    member.rename(moved)
    with pytest.raises(UserError, match="its member .*member is gone, or has another model"):
        load_run(str(tmp_path / "e"))
    moved.rename(member)
    load_run(str(tmp_path / "e"))
    record = tmp_path / "e" / "best" / "ensemble.json"
    record.write_text(record.read_text().replace("1.0", "9.0"))
    with pytest.raises(UserError, match="best/ is damaged"):
        load_run(str(tmp_path / "e"))


def test_ensemble_cannot_be_trained(tiny_data, tmp_path):
    values = small_values(tiny_data, run_dir=str(tmp_path / "r"))
    with pytest.raises(UserError, match="it is made of runs"):
        run("Ensemble", "tiny", config_dict=values)


def test_weights_change_only_where_that_is_worth_it():
    assert find_weights(3, lambda weights: 1.0) == [1, 1, 1]
    assert find_weights(2, lambda w: 1 - 0.001 * abs(w[0] - 2)) == [1, 1]
    assert find_weights(2, lambda w: 1 - abs(w[0] - 2) - abs(w[1] - 0.5)) == [2, 0.5]
