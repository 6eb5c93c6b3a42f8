"""Training with an item head, and without."""

import torch

from tests.helpers import parameters_of
from tests.trainer.trainers import make_trainer, metrics_lines

OTHER_KEYS = {
    "item_head": False,
    "item_input": False,
    "item_dropout": 0.9,
    "item_vector_dropout": 0.5,
    "item_weight": 9.0,
    "item_smoothing": 0.5,
    "item_sample": 3,
    "candidates": 20,
    "item_score_weight": 2.0,
}


def trained(data: str, run_dir, **values) -> tuple[dict, list[dict], object]:
    """Parameters, records and model of a short run with dropout."""
    trainer, loaders = make_trainer(data, run_dir, dropout=0.2, finetune_epochs=2, **values)
    trainer.fit(loaders.train, loaders.valid)
    lines = [{k: v for k, v in line.items() if k != "seconds"} for line in metrics_lines(trainer)]
    return parameters_of(trainer.model), lines, trainer.model


def test_training_is_the_same_to_the_bit_when_there_is_no_head(tiny_data, tmp_path):
    one, lines, _ = trained(tiny_data, tmp_path / "one")
    two, others, _ = trained(tiny_data, tmp_path / "two", **OTHER_KEYS)
    assert lines == others and one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any("item" in line for line in lines)


def test_item_loss_counts_in_the_epochs_of_the_recommender(tiny_data, tmp_path):
    values = {"item_head": True, "candidates": 20, "learning_rate": 0.01}
    parameters, lines, model = trained(tiny_data, tmp_path / "run", **values)
    assert [("item" in line) for line in lines if "trains" in line] == [
        line["trains"] == "recommender" for line in lines if "trains" in line
    ]
    losses = [line["item"] for line in lines if "item" in line]
    assert losses[-1] < losses[0] < 4.5  # ln 40 = 3.7
    free = parameters["recommender.item_head.free"]
    assert free[1:].abs().sum(dim=1).min() > 0
    assert any("norm_item_head" in name for name in lines[-1])
    assert set(model.ranker.chosen) == {"item_score_weight"}
