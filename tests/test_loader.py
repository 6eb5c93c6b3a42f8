"""Windows, cuts and batches: every target once, within the budget, drawn from the seed."""

import numpy as np
import pytest
import torch

from recbole_etegrec.data.loader import (
    SequenceLoader,
    TokenBudgetSampler,
    Windows,
    cut_windows,
    make_windows,
    split_by_budget,
)
from tests.helpers import beauty_path, small_config, small_data


def times_supervised(windows: Windows, interactions: int) -> np.ndarray:
    """How often each interaction is a target."""
    count = np.zeros(interactions, dtype=int)
    for _, end, supervised_from in zip(*windows, strict=True):
        count[supervised_from:end] += 1
    return count


def random_offsets(seed: int) -> np.ndarray:
    lengths = np.random.default_rng(seed).integers(1, 40, 30)
    return np.concatenate([[0], np.cumsum(lengths)])


@pytest.mark.parametrize(("max_history", "stride"), [(10, 5), (7, 3), (5, 1), (4, 4), (1, 1)])
def test_windows_supervise_each_target_once_when_sequences_are_long(max_history, stride):
    for seed in range(5):
        offsets = random_offsets(seed)
        expected = np.ones(offsets[-1], dtype=int)
        expected[offsets[:-1]] = 0
        whole = make_windows(offsets, max_history, stride)
        rng = np.random.default_rng(seed)
        for windows in (whole, *(cut_windows(whole, p, rng) for p in (0.0, 0.5, 1.0))):
            assert (times_supervised(windows, offsets[-1]) == expected).all()
            assert (windows.end - windows.start <= max_history + 1).all()
            assert (windows.start < windows.supervised_from).all()
            assert (windows.supervised_from < windows.end).all()
            # No window reaches into another user's sequence.
            user = np.searchsorted(offsets, windows.start, side="right")
            assert (windows.end <= offsets[user]).all()


def test_windows_are_the_whole_sequence_when_it_fits():
    offsets = np.array([0, 6, 7, 9, 20])
    windows = make_windows(offsets, max_history=5, stride=2)
    first = windows.start < 9
    assert windows.start[first].tolist() == [0, 7]
    assert windows.end[first].tolist() == [6, 9]
    assert windows.supervised_from[first].tolist() == [1, 8]


def test_windows_overlap_when_a_sequence_is_long():
    windows = make_windows(np.array([0, 20]), max_history=8, stride=4)
    assert list(zip(*(column.tolist() for column in windows), strict=True)) == [
        (0, 9, 1),
        (4, 13, 9),
        (8, 17, 13),
        (11, 20, 17),
    ]
    # Each target of a further window has at least max_history + 1 - stride items before it.
    assert (windows.supervised_from - windows.start)[1:].min() == 5


def test_cuts_split_every_window_that_has_two_targets_when_certain():
    whole = make_windows(np.array([0, 2, 5, 12]), max_history=20, stride=10)
    cut = cut_windows(whole, 1.0, np.random.default_rng(0))
    assert len(cut.start) == 5
    assert sorted((cut.end - cut.start)[[0, 1, 2]].tolist())[0] == 2
    assert cut.start[3:].tolist() == (cut.end[1:3] - 1).tolist()


def test_cuts_fall_on_every_place_when_drawn_often():
    whole = make_windows(np.array([0, 6]), max_history=20, stride=10)
    rng = np.random.default_rng(0)
    places = {int(cut_windows(whole, 1.0, rng).start[1]) for _ in range(200)}
    assert places == {1, 2, 3, 4}


def test_split_by_budget_keeps_order_and_budget_when_lengths_ascend():
    lengths = np.sort(np.random.default_rng(0).integers(2, 30, 200))
    batches = split_by_budget(np.arange(200), lengths, max_items=64)
    assert sum(batches, []) == list(range(200))
    for batch in batches:
        assert len(batch) * lengths[batch].max() <= 64
    # A batch ends only where one more window would not fit.
    for batch, following in zip(batches[:-1], batches[1:], strict=True):
        assert (len(batch) + 1) * lengths[following[0]] > 64


def test_split_by_budget_gives_a_window_its_own_batch_when_it_exceeds_the_budget():
    assert split_by_budget(np.array([5, 3]), np.array([9, 9]), max_items=4) == [[5], [3]]


def check_epoch(loader: SequenceLoader, max_tokens: int) -> float:
    """Check all batches of an epoch; returns the share of padding."""
    items = loader._dataset.inter_feat["item_id"].numpy()
    offsets = np.flatnonzero(np.diff(loader._dataset.inter_feat["user_id"], prepend=-1))
    expected = np.ones(len(items), dtype=int)
    expected[offsets] = 0
    windows = loader.dataset.windows
    assert (times_supervised(windows, len(items)) == expected).all()
    assert sorted(sum(loader.batch_sampler.batches, [])) == list(range(len(windows.start)))

    targets, padding, total = [], 0, 0
    for batch in loader:
        assert batch.items.numel() * 4 <= max_tokens
        present = batch.items > 0
        assert not (present[:, 1:] & ~present[:, :-1]).any()  # on the right
        padding, total = padding + int((~present).sum()), total + present.numel()
        assert torch.equal(batch.items[:, 1:].flatten()[batch.target_index], batch.targets)
        assert (batch.targets > 0).all()
        assert len(batch.target_index.unique()) == len(batch.target_index)
        assert torch.equal(batch.distinct, batch.targets.unique())
        assert torch.equal(batch.distinct[batch.distinct_index], batch.targets)
        targets.append(batch.targets)
    found = torch.cat(targets)
    assert len(found) == expected.sum()
    assert torch.equal(
        torch.bincount(found), torch.bincount(torch.from_numpy(items[expected == 1]))
    )
    return padding / total


@pytest.mark.parametrize("cut", [0.0, 0.5])
@pytest.mark.parametrize("window", [50, 8])
def test_loader_supervises_each_target_once_when_data_is_tiny(cut, window, tiny_data):
    values = {"cut_probability": cut, "MAX_ITEM_LIST_LENGTH": window, "max_tokens": 400}
    loader = small_data(small_config(tiny_data, **values))[1].train
    for epoch in range(3):
        loader.draw(epoch)
        assert check_epoch(loader, 400) < 0.2


@pytest.mark.parametrize("cut", [0.0, 0.5])
def test_loader_supervises_each_target_once_when_data_is_beauty(cut, tmp_path):
    values = {"embedding_cache": str(tmp_path), "cut_probability": cut}
    config = small_config(beauty_path(), "Beauty", **values)
    _, loaders = small_data(config)
    for epoch in range(2):
        loaders.train.draw(epoch)
        assert check_epoch(loaders.train, 8192) < 0.05
    assert sum(len(batch.targets) for batch in loaders.train) == 131_413
    assert len(loaders.test._dataset.inter_feat) == 22_363
    windows = loaders.train.dataset.whole
    overlaps = windows.start[1:] < windows.end[:-1]
    assert overlaps.sum() > 100
    half_empty = [b for b in loaders.train if (b.items == 0).sum() * 2 > b.items.numel()]
    assert len(half_empty) <= 0.02 * len(loaders.train)


def batches_of(loader: SequenceLoader, epoch: int) -> list[list[int]]:
    loader.draw(epoch)
    return [batch.items.tolist() for batch in loader]


def test_loader_draws_from_seed_and_epoch_alone_when_asked_again(tiny_data):
    def build(seed: int) -> SequenceLoader:
        return small_data(small_config(tiny_data, max_tokens=400, seed=seed))[1].train

    first, second, other = build(5), build(5), build(6)
    epochs = [batches_of(first, epoch) for epoch in range(3)]
    torch.manual_seed(99)
    np.random.seed(99)
    assert batches_of(second, 2) == epochs[2]
    assert batches_of(second, 0) == epochs[0]
    assert epochs[0] != epochs[1] != epochs[2]
    assert batches_of(other, 0) != epochs[0]
    # Other batches, not only another order of them.
    assert {str(b) for b in epochs[0]} != {str(b) for b in epochs[1]}


def test_sampler_keeps_order_when_not_shuffled(tiny_data):
    windows = small_data(small_config(tiny_data, cut_probability=0.0))[1].train.dataset
    sampler = TokenBudgetSampler(windows, 100, seed=0, shuffle=False)
    lengths = windows.lengths()
    order = sum(list(sampler), [])
    assert (np.diff(lengths[order]) >= 0).all()
    before = list(sampler)
    sampler.draw(3)
    assert list(sampler) == before
