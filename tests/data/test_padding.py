"""Batches of few shapes: what is added to them counts nowhere."""

import math

import pytest
import torch

from recbole_etegrec.data.padding import pad_batch
from recbole_etegrec.trainer.schedule import Stage
from tests.helpers import small_config, small_model, whole_steps
from tests.trainer.trainers import WEIGHTS


@pytest.fixture(scope="module", params=[False, True], ids=["codes", "item head"])
def setting(request, tiny_data):
    return small_model(small_config(tiny_data, max_tokens=400, item_head=request.param))


@pytest.mark.parametrize("trains", ["recommender", "tokenizer"])
def test_losses_and_gradients_stay_when_a_step_is_padded(setting, trains):
    model, loaders = setting
    weights = WEIGHTS[trains] | ({"item": 0.3} if trains == "recommender" else {})
    stage = Stage("alternation", trains, weights)
    module = getattr(model, trains).requires_grad_(True)

    def losses_of(batch) -> tuple[dict, list]:
        module.zero_grad()
        losses = model.losses(stage.weights, batch)
        sum(losses.values()).backward()
        gradients = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        return {name: loss.item() for name, loss in losses.items()}, gradients

    for batch in whole_steps(loaders.train)[:4]:
        padded = pad_batch(batch, loaders.train.max_items, model.n_items)
        assert len(padded.targets) > len(batch.targets)
        losses, gradients = losses_of(batch)
        found, of_padded = losses_of(padded)
        assert found == pytest.approx(losses, rel=1e-5)
        assert len(gradients) == len(of_padded) > 0
        for gradient, other in zip(gradients, of_padded, strict=True):
            torch.testing.assert_close(other, gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["llama", "t5"])
def test_rows_of_prefixes_have_one_target_each_when_they_are_padded(backbone, tiny_data):
    values = {"training_rows": "prefixes", "step_targets": 30, "item_head": False}
    config = small_config(tiny_data, backbone=backbone, max_tokens=4000, **values)
    model, loaders = small_model(config)
    module = model.recommender.requires_grad_(True)
    rows = math.ceil(loaders.train.targets_a_step) + 2

    def found(batch) -> tuple[float, list]:
        module.zero_grad()
        losses = model.losses(WEIGHTS["recommender"], batch)
        sum(losses.values()).backward()
        gradients = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        return [loss.item() for loss in losses.values()], gradients

    for batch in whole_steps(loaders.train)[:4]:
        padded = pad_batch(batch, loaders.train.max_items, model.n_items, rows)
        width = padded.items.shape[1] - 1
        assert (padded.target_index // width).tolist() == list(range(rows))
        assert padded.targets[padded.real_targets].tolist() == batch.targets.tolist()
        for value, other in zip(found(batch), found(padded), strict=True):
            torch.testing.assert_close(other, value, atol=1e-5, rtol=1e-4)


def test_padded_steps_have_few_shapes_and_little_padding_when_widths_are_many(setting):
    model, loaders = setting
    loader, shapes, longest = loaders.train, set(), set()
    for epoch in range(20):
        loader.draw(epoch)
        for batch in whole_steps(loader):
            padded = pad_batch(batch, loader.max_items, model.n_items)
            assert padded.items.shape[0] * padded.items.shape[1] <= loader.max_items * 8 / 7
            assert padded.targets[padded.real_targets].tolist() == batch.targets.tolist()
            distinct = padded.distinct[padded.distinct_index[padded.real_targets]]
            assert torch.equal(distinct, batch.targets)
            assert torch.equal(padded.distinct[padded.real_distinct], batch.distinct)
            shapes.add(tuple(tuple(v.shape) for v in padded if torch.is_tensor(v)))
            longest.add(batch.items.shape)
    assert len(shapes) < 25 < len(longest)


def test_rows_stay_when_one_is_longer_than_the_budget(setting):
    model, loaders = setting
    batch = whole_steps(loaders.train)[0]
    padded = pad_batch(batch, 1, model.n_items)
    assert len(padded.items) == len(batch.items)
