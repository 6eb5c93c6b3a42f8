"""RecBole's own models from start to reloaded checkpoint."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recbole_etegrec.config import Config
from recbole_etegrec.errors import UserError
from recbole_etegrec.evaluation.collector import RankingCollector
from recbole_etegrec.quick_start import result_table, run
from recbole_etegrec.runs.load import load_run
from tests.conftest import write_interactions

SMALL = {
    "epochs": 2,
    "train_batch_size": 256,
    "show_progress": False,
    "state": "WARNING",
    "topk": [5, 10],
    "stopping_step": 1,
}


def values_for(tiny_data: str, run_dir: Path, **more) -> dict:
    return {**SMALL, "data_path": tiny_data, "run_dir": str(run_dir), **more}


def score_again(run_dir: Path) -> dict[str, float]:
    """Test metrics of a reloaded run, by a trainer that has never seen it."""
    from recbole.utils import get_trainer

    config, model, _, train_data, _, test_data = load_run(str(run_dir))
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.eval_collector = RankingCollector(config)
    trainer.eval_collector.data_collect(train_data)
    return dict(trainer.evaluate(test_data, load_best_model=False))


@pytest.mark.parametrize(
    "model",
    ["Pop", "BPR", "LightGCN", "ItemKNN", "EASE", "SLIMElastic", "GRU4Rec", "SASRec", "BERT4Rec"],
)
def test_baseline_scores_the_same_when_its_run_is_loaded(model, tiny_data, tmp_path):
    outcome = run(model, "tiny", config_dict=values_for(tiny_data, tmp_path / "run"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["test_result"] == outcome["test_result"]
    assert set(result["test_result"]) == {
        f"{m}@{k}" for m in ("recall", "ndcg", "mrr") for k in (5, 10)
    }
    assert (result["model"], result["dataset"], result["seed"]) == (model, "tiny", 2020)
    assert result["epochs"] in (1, 2)
    assert result["versions"]["recbole"] == "1.2.1"
    assert score_again(tmp_path / "run") == outcome["test_result"]
    assert not list((tmp_path / "run").rglob("*.pth"))


@pytest.mark.parametrize("content", ["cut", "other model"])
def test_load_refuses_when_the_weights_are_damaged(content, tiny_data, tmp_path):
    run("BPR", "tiny", config_dict=values_for(tiny_data, tmp_path / "run"))
    best = tmp_path / "run" / "best"
    if content == "cut":
        path = best / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
    else:
        save_file({"state.a": torch.zeros(3)}, best / "model.safetensors")
    with pytest.raises(UserError, match="train (the run|it) anew$"):
        load_run(str(tmp_path / "run"))


def test_baseline_runs_when_the_model_needs_an_item_feature(tmp_path):
    write_interactions(tmp_path, "d", [[(u + t) % 9 for t in range(5)] for u in range(20)])
    features = [f"i{item}\tc{item % 2}" for item in range(9)]
    text = "\n".join(["item_id:token\tclass:token_seq", *features]) + "\n"
    (tmp_path / "d" / "d.item").write_text(text)
    columns = {"inter": ["user_id", "item_id"], "item": ["item_id", "class"]}
    values = values_for(str(tmp_path), tmp_path / "run", topk=[5], valid_metric="MRR@5")
    outcome = run("FDSA", "d", config_dict={**values, "load_col": columns})
    assert outcome["test_result"]["recall@5"] > 0
    assert score_again(tmp_path / "run") == outcome["test_result"]


@pytest.mark.slow
def test_baseline_gives_the_same_metrics_when_run_twice(tiny_data, tmp_path):
    first, second = (
        run("SASRec", "tiny", config_dict=values_for(tiny_data, tmp_path / name)) for name in "ab"
    )
    assert first["test_result"] == second["test_result"]
    assert first["best_valid_score"] == second["best_valid_score"]


def test_baseline_writes_no_checkpoint_when_not_saved(tiny_data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run("BPR", "tiny", config_dict=values_for(tiny_data, tmp_path / "run"), saved=False)
    assert outcome["test_result"]["recall@10"] > 0
    assert not list((tmp_path / "run").glob("*.pth"))
    # Nothing is left outside the run directory.
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_baseline_runs_when_evaluation_is_sampled(tiny_data, tmp_path):
    values = values_for(tiny_data, tmp_path / "run", eval_args={"mode": "uni20"})
    full = run("Pop", "tiny", config_dict=values_for(tiny_data, tmp_path / "full"))
    sampled = run("Pop", "tiny", config_dict=values)
    assert sampled["test_result"]["recall@10"] >= full["test_result"]["recall@10"]


def test_result_table_has_a_row_a_metric_when_metrics_have_cutoffs():
    table = result_table({"recall@5": 0.1, "recall@10": 0.25, "gauc": 0.5})
    assert [line.split() for line in table.splitlines()] == [
        ["@5", "@10"],
        ["recall", "0.1000", "0.2500"],
        ["gauc", "0.5000"],
    ]


def test_config_of_a_run_is_rebuilt_when_read_from_its_directory(tiny_data, tmp_path):
    run("Pop", "tiny", config_dict=values_for(tiny_data, tmp_path / "run"))
    again = Config(config_file_list=[str(tmp_path / "run" / "config.yaml")])
    assert (again["model"], again["dataset"], again["epochs"]) == ("Pop", "tiny", 2)
