"""A trial as RecBole's search for hyperparameters asks for it."""

import numpy as np
import pytest
from recbole.trainer import HyperTuning

from recbole_etegrec.config import Config, properties_dir
from recbole_etegrec.quick_start import objective_function

SPACE = properties_dir() / "tuning" / "ETEGRecLlama.hyper"


def fixed_values(tiny_data: str, folder) -> list[str]:
    """A config file with what a search leaves as it is."""
    file = folder / "fixed.yaml"
    lines = ["model: BPR", "dataset: tiny", f"data_path: {tiny_data}", "epochs: 1"]
    file.write_text("\n".join([*lines, "show_progress: False", "state: WARNING"]))
    return [str(file)]


def test_objective_function_returns_a_trial_when_values_are_of_numpy(
    tiny_data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    trial = objective_function(
        {"learning_rate": np.float64(0.01)}, fixed_values(tiny_data, tmp_path)
    )
    assert trial["model"] == "BPR"
    assert trial["valid_score_bigger"] is True
    assert trial["best_valid_score"] == trial["best_valid_result"]["ndcg@10"]
    assert trial["test_result"]["recall@10"] > 0
    assert Config(config_file_list=[f"{trial['run_dir']}/config.yaml"])["learning_rate"] == 0.01


def test_sample_space_has_keys_of_the_model_when_read_by_line():
    lines = [line.split(" ") for line in SPACE.read_text().splitlines()]
    assert lines
    for name, kind, _ in lines:
        assert name in Config("ETEGRecLlama", "tiny").known_keys
        assert kind == "choice"


def test_objective_function_serves_recboles_search_when_hyperopt_is_there(
    tiny_data, tmp_path, monkeypatch
):
    pytest.importorskip("hyperopt")
    monkeypatch.chdir(tmp_path)
    tuning = HyperTuning(
        objective_function,
        algo="random",  # RecBole's "exhaustive" fails on hyperopt 0.2.7
        max_evals=2,
        params_dict={"loguniform": {"learning_rate": [-7, -2]}},
        fixed_config_file_list=fixed_values(tiny_data, tmp_path),
    )
    tuning.run()
    assert 0 < tuning.best_params["learning_rate"] < 1
    assert len(tuning.params2result) == 2
    assert tuning.best_score == max(tuning.score_list)
    sample = HyperTuning(objective_function, params_file=str(SPACE)).space
    assert sample.keys() == {line.split(" ")[0] for line in SPACE.read_text().splitlines()}
