"""SASRec's training on a sample of the items."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recbole_etegrec.data.item_embedding import sampled, sasrec
from recbole_etegrec.data.item_embedding.sampled import sampled_loss
from tests.helpers import small_config, small_data


def table_and_states(items: int):
    generator = torch.Generator().manual_seed(0)
    table = nn.Embedding(items + 1, 6)
    nn.init.normal_(table.weight, std=0.7, generator=generator)
    states = torch.randn(9, 6, generator=generator)
    return table, states, torch.randint(1, items + 1, (9,), generator=generator)


def test_loss_is_that_of_all_items_when_the_sample_is_the_catalogue():
    table, states, targets = table_and_states(40)
    logits = states @ table.weight.T
    logits[:, 0] = -torch.inf
    expected = F.cross_entropy(logits, targets)
    torch.testing.assert_close(sampled_loss(states, targets, table), expected)


def test_loss_is_near_that_of_all_items_when_the_sample_is_a_part():
    table, states, targets = table_and_states(400)
    logits = states @ table.weight.T
    logits[:, 0] = -torch.inf
    torch.manual_seed(0)
    with torch.no_grad():
        mean = np.mean([float(sampled_loss(states, targets, table, 100)) for _ in range(200)])
        expected = float(F.cross_entropy(logits, targets))
    assert expected - 0.1 < mean < expected + 0.02  # the logarithm of a mean is the larger one


def vectors_of(train, cache, epochs: int = 4, width: int = 8) -> np.ndarray:
    return sasrec.sasrec_embedding(
        train,
        width=width,
        epochs=epochs,
        max_history=50,
        window_overlap=0.5,
        seed=1,
        device=torch.device("cpu"),
        cuda_graphs=True,
        cache=cache,
        show_progress=False,
    )


def test_training_goes_on_where_it_was_stopped(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(sasrec, "SAMPLED_FROM", 1)
    monkeypatch.setattr(sasrec, "SAMPLED_STEP", 256)
    train = small_data(small_config(tiny_data))[1].train._dataset
    whole = vectors_of(train, tmp_path / "whole")
    epoch, done = sasrec.train_epoch, []

    def stopping(*arguments):
        done.append(len(done))
        if len(done) == 3:
            raise KeyboardInterrupt
        return epoch(*arguments)

    monkeypatch.setattr(sasrec, "train_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        vectors_of(train, tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("*.progress"))) == 1
    found = vectors_of(train, tmp_path / "parts")
    assert len(done) == 5  # two epochs, one that was stopped, the two that were left
    assert np.array_equal(found, whole)
    assert not list((tmp_path / "parts").glob("*.progress"))


def test_damaged_progress_is_left_aside(tmp_path, caplog):
    path = tmp_path / "x.progress"
    path.write_bytes(b"damaged")
    assert sampled.read_progress(path, nn.Linear(1, 1), None) == []
    assert "damaged" in caplog.text


def test_sampled_training_lowers_the_loss(tiny_data, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(sasrec, "SAMPLED_FROM", 1)
    monkeypatch.setattr(sasrec, "LEARNING_RATE", 0.01)
    monkeypatch.setattr(sasrec, "SAMPLED_STEP", 256)
    caplog.set_level("INFO")
    train = small_data(small_config(tiny_data))[1].train._dataset
    vectors_of(train, tmp_path, epochs=15)
    (said,) = [message for message in caplog.messages if "in the first" in message]
    first, last = map(float, re.findall(r"(\d\.\d+) in the", said))
    assert last < first
