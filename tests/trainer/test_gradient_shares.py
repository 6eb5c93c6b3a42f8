"""The shares of objectives in the gradient, against gradients that torch finds by itself."""

from pathlib import Path

import pytest
import torch

from recbole_etegrec.config import Config, properties_dir
from recbole_etegrec.model import MODELS
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer import ETEGRecTrainer
from recbole_etegrec.trainer.gradient_shares import gradient_shares
from recbole_etegrec.trainer.schedule import Stage
from tests.helpers import (
    beauty_path,
    changed_since,
    parameters_of,
    small_config,
    small_data,
    whole_steps,
)
from tests.trainer.test_engine import gradients_by_hand, make_engine, norm_by_hand
from tests.trainer.trainers import WEIGHTS, make_trainer, metrics_lines

OWN = {"recommender": "recommendation", "tokenizer": "quantization"}
GROUPS = {
    "recommender": {"backbone": "backbone.", "codebooks": "codebooks"},
    "tokenizer": {"encoder": "encoder.", "decoder": "decoder.", "codebooks": "codebooks"},
}


@pytest.mark.parametrize("trains", ["recommender", "tokenizer"])
def test_shares_are_those_of_torchs_gradients_when_taken_one_by_one(trains, tiny_data, tmp_path):
    engine, steps = make_engine(tiny_data, tmp_path / "run")
    stage = Stage("alternation", trains, WEIGHTS[trains])
    before = parameters_of(engine.model)
    found = gradient_shares(engine, steps[0], stage)
    assert not changed_since(engine.model, before)
    assert all(parameter.grad is None for parameter in engine.model.parameters())
    norms = {}
    for name, weight in stage.weights.items():
        alone = Stage("alternation", trains, {name: weight})
        gradients = gradients_by_hand(engine.model, steps[0][0], alone)
        for group, part in GROUPS[trains].items():
            own = [g for full, g in gradients.items() if part in full and g is not None]
            norms[name, group] = norm_by_hand(own) if own else 0.0
    expected = {
        f"share_{name}_{group}": norms[name, group] / norms[OWN[trains], group]
        for name in ("sia", "psa")
        for group in GROUPS[trains]
    }
    assert found == pytest.approx(expected, rel=1e-4)


def test_shares_are_those_of_the_whole_step_when_it_is_split(tiny_data, tmp_path):
    engine, _ = make_engine(tiny_data, tmp_path / "run")
    loader = small_data(small_config(tiny_data, max_tokens=600))[1].train
    stage = Stage("alternation", "recommender", {"recommendation": 1.0, "sia": 0.1})
    whole = gradient_shares(engine, whole_steps(loader)[:1], stage)
    loader.split(3)
    assert gradient_shares(engine, next(iter(loader)), stage) == pytest.approx(whole, rel=1e-4)


def test_epochs_record_shares_when_they_have_objectives_to_weigh(tiny_data, tmp_path):
    values = {"sia_weight": 0.1, "psa_weight": 0.1, "psa_fixed_weight": 0.1, "epochs": 4}
    trainer, loaders = make_trainer(tiny_data, tmp_path / "run", **values)
    trainer.fit(loaders.train, loaders.valid)
    shares = [
        {key.split("_", 1)[1].rpartition("_")[0] for key in line if key.startswith("share_")}
        for line in metrics_lines(trainer)
        if line["phase"] != "pretraining"
    ]
    recommender = {"sia", "psa", "psa_fixed"}
    # Tokenizer, recommender, tokenizer, recommender; the final phase has the fixed vectors alone.
    assert shares == [set(), recommender, {"sia", "psa"}, recommender, {"psa_fixed"}]


@pytest.mark.slow
def test_alignment_is_felt_when_the_schedule_is_the_papers(tmp_path):
    """With its weights, after the warm epochs, on users of Beauty.

    SIA grows with the tokenizer's scale, which pretraining brings: on all of Beauty its share on
    the backbone is 9 to 21 %.
    """
    values = {
        "data_path": beauty_path(),
        "embedding_cache": str(tmp_path / "cache"),
        "item_embedding": "collaborative",
        "user_inter_num_interval": "[10,11]",
        "item_inter_num_interval": "[1,inf)",
        "dataset_counts": None,
        "use_gpu": False,
        "tokenizer_epochs": 100,
        "epochs": 4,
        "finetune_epochs": 0,
        "warmup_steps": 0.1,  # there are few steps
        "valid_users": 50,
        "show_progress": False,
        "state": "WARNING",
    }
    overlay = str(Path(properties_dir()) / "schedule" / "paper.yaml")
    config = Config("ETEGRecLlama", "Beauty", [overlay], values)
    torch.manual_seed(config["seed"])
    loaders = small_data(config)[1]
    model = MODELS["ETEGRecLlama"](config, loaders.train._dataset)
    trainer = ETEGRecTrainer(config, model, RunDirectory.create(tmp_path / "run"))
    trainer.fit(loaders.train, loaders.valid)
    tokenizer, recommender = metrics_lines(trainer)[-2:]
    assert (tokenizer["trains"], recommender["trains"]) == ("tokenizer", "recommender")
    for line, key in (
        (tokenizer, "share_sia_encoder"),
        (tokenizer, "share_psa_encoder"),
        (tokenizer, "share_psa_decoder"),
        (recommender, "share_sia_backbone"),
        (recommender, "share_psa_backbone"),
    ):
        assert line[key] > 0.03, key
