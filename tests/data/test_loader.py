"""Windows, cuts, steps and their batches: every target once, drawn from the seed."""

import numpy as np
import pytest
import torch

from recbole_etegrec.data.loader import SequenceBatch, SequenceLoader, split_by_budget
from recbole_etegrec.data.sequences import (
    Windows,
    cut_windows,
    make_prefixes,
    make_windows,
    whole_sequences,
)
from recbole_etegrec.losses import ForwardPass
from tests.helpers import beauty_path, micro_batches_of, small_config, small_data, whole_steps


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
        whole = make_windows(whole_sequences(offsets), max_history, stride)
        rng = np.random.default_rng(seed)
        for windows in (whole, *(cut_windows(whole, p, rng) for p in (0.0, 0.5, 1.0))):
            assert (times_supervised(windows, offsets[-1]) == expected).all()
            assert (windows.end - windows.start <= max_history + 1).all()
            assert (windows.start < windows.supervised_from).all()
            assert (windows.supervised_from < windows.end).all()
            # No window reaches into another user's sequence.
            user = np.searchsorted(offsets, windows.start, side="right")
            assert (windows.end <= offsets[user]).all()


@pytest.mark.parametrize("max_history", [1, 7, 50])
def test_prefixes_have_each_target_once_behind_its_history_when_cut_from_sequences(max_history):
    offsets = random_offsets(0)
    windows = make_prefixes(whole_sequences(offsets), max_history)
    expected = np.ones(offsets[-1], dtype=int)
    expected[offsets[:-1]] = 0
    assert (times_supervised(windows, offsets[-1]) == expected).all()
    assert (windows.supervised_from == windows.end - 1).all()
    first = offsets[np.searchsorted(offsets, windows.supervised_from, side="right") - 1]
    before = np.minimum(windows.supervised_from - first, max_history)
    assert (windows.supervised_from - windows.start == before).all()
    cut = cut_windows(windows, 1.0, np.random.default_rng(0))  # there is nothing to cut
    assert all((one == two).all() for one, two in zip(cut, windows, strict=True))


def test_windows_are_the_whole_sequence_when_it_fits():
    offsets = np.array([0, 6, 7, 9, 20])
    windows = make_windows(whole_sequences(offsets), max_history=5, stride=2)
    first = windows.start < 9
    assert windows.start[first].tolist() == [0, 7]
    assert windows.end[first].tolist() == [6, 9]
    assert windows.supervised_from[first].tolist() == [1, 8]


def test_windows_overlap_when_a_sequence_is_long():
    windows = make_windows(whole_sequences(np.array([0, 20])), max_history=8, stride=4)
    assert list(zip(*(column.tolist() for column in windows), strict=True)) == [
        (0, 9, 1),
        (4, 13, 9),
        (8, 17, 13),
        (11, 20, 17),
    ]
    # Each target of a further window has at least max_history + 1 - stride items before it.
    assert (windows.supervised_from - windows.start)[1:].min() == 5


def test_cuts_split_every_window_that_has_two_targets_when_certain():
    whole = make_windows(whole_sequences(np.array([0, 2, 5, 12])), max_history=20, stride=10)
    cut = cut_windows(whole, 1.0, np.random.default_rng(0))
    assert len(cut.start) == 5
    assert sorted((cut.end - cut.start)[[0, 1, 2]].tolist())[0] == 2
    assert cut.start[3:].tolist() == (cut.end[1:3] - 1).tolist()


def test_cuts_fall_on_every_place_when_drawn_often():
    whole = make_windows(whole_sequences(np.array([0, 6])), max_history=20, stride=10)
    rng = np.random.default_rng(0)
    places = {int(cut_windows(whole, 1.0, rng).start[1]) for _ in range(200)}
    assert places == {1, 2, 3, 4}


def test_split_by_budget_keeps_order_and_budget_when_lengths_ascend():
    lengths = np.sort(np.random.default_rng(0).integers(2, 30, 200))
    batches = split_by_budget(np.arange(200), lengths, max_items=64)
    assert np.concatenate(batches).tolist() == list(range(200))
    for batch in batches:
        assert len(batch) * lengths[batch].max() <= 64
    # A batch ends only where one more window would not fit.
    for batch, following in zip(batches[:-1], batches[1:], strict=True):
        assert (len(batch) + 1) * lengths[following[0]] > 64


def test_split_by_budget_gives_a_window_its_own_batch_when_it_exceeds_the_budget():
    batches = split_by_budget(np.array([5, 3]), np.array([9, 9]), max_items=4)
    assert [batch.tolist() for batch in batches] == [[5], [3]]


def check_epoch(loader: SequenceLoader, max_tokens: int) -> float:
    """Check all steps of an epoch; returns the share of padding."""
    items = loader._dataset.inter_feat["item_id"].numpy()
    offsets = np.flatnonzero(np.diff(loader._dataset.inter_feat["user_id"], prepend=-1))
    expected = np.ones(len(items), dtype=int)
    expected[offsets] = 0
    assert (times_supervised(loader.windows, len(items)) == expected).all()
    rows = np.concatenate(loader.steps)
    assert sorted(rows.tolist()) == list(range(len(loader.windows.start)))
    assert len(loader) == len(loader.steps)

    targets, padding, total = [], 0, 0
    for batch in whole_steps(loader):
        assert batch.items.numel() * 4 <= max_tokens
        present = batch.items > 0
        assert not (present[:, 1:] & ~present[:, :-1]).any()  # on the right
        padding, total = padding + int((~present).sum()), total + present.numel()
        assert torch.equal(batch.items[:, 1:].flatten()[batch.target_index], batch.targets)
        assert (batch.targets > 0).all()
        assert len(batch.target_index.unique()) == len(batch.target_index)
        assert torch.equal(batch.distinct, batch.targets.unique())
        assert torch.equal(batch.distinct[batch.distinct_index], batch.targets)
        assert (batch.step_targets, batch.micro_batches) == (len(batch.targets), 1)
        assert batch.step_items == int(present.sum())
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
    steps = whole_steps(loaders.train)
    assert sum(len(batch.targets) for batch in steps) == 131_413
    assert len(loaders.test._dataset.inter_feat) == 22_363
    whole = loaders.train.whole
    overlaps = whole.start[1:] < whole.end[:-1]
    assert overlaps.sum() > 100
    half_empty = [b for b in steps if (b.items == 0).sum() * 2 > b.items.numel()]
    assert len(half_empty) <= 0.02 * len(steps)


def batches_of(loader: SequenceLoader, epoch: int) -> list[list[int]]:
    loader.draw(epoch)
    return [batch.items.tolist() for batch in whole_steps(loader)]


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


# What a target weighs ---------------------------------------------------------------------------


def weights_of(loader: SequenceLoader) -> torch.Tensor:
    """By how much the loss of each target counts in the step that it comes in ``[targets]``."""
    found = []
    for step in loader:
        for batch in step:
            loss = torch.zeros(len(batch.targets), requires_grad=True)
            ForwardPass(batch, batch.targets).mean_over_targets(loss).backward()
            found.append(loss.grad)
    return torch.cat(found)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("step_targets", [None, 30])
@pytest.mark.parametrize("rows", ["sequences", "prefixes"])
def test_targets_weigh_the_same_when_an_epoch_is_over(rows, step_targets, micro_batches, tiny_data):
    loader = tiny_loader(tiny_data, training_rows=rows, step_targets=step_targets)
    loader.split(micro_batches)
    for epoch in range(2):
        loader.draw(epoch)
        weights = weights_of(loader)
        # Together they weigh what as many means over steps do.
        expected = torch.full_like(weights, len(loader) / len(weights))
        torch.testing.assert_close(weights, expected)
        numbers = [step[0].step_targets for step in loader]
        if rows == "prefixes":
            assert max(numbers) - min(numbers) <= 1
            assert step_targets is None or abs(np.mean(numbers) - step_targets) < 3


def test_targets_weigh_the_same_when_data_is_beauty(tmp_path):
    for rows, ratio in (("sequences", 2.5), ("prefixes", 1.01)):
        values = {"embedding_cache": str(tmp_path), "training_rows": rows}
        loader = small_data(small_config(beauty_path(), "Beauty", **values))[1].train
        steps = list(loader)
        assert sum(step[0].step_targets for step in steps) == 131_413
        assert {step[0].divisor for step in steps} == {131_413 / len(steps)}
        # The last steps of a width may hold few rows.
        numbers = np.percentile([step[0].step_targets for step in steps], [2, 98])
        assert numbers[1] / numbers[0] < ratio


def test_steps_of_prefixes_are_computed_in_parts_when_they_exceed_the_budget(tiny_data):
    loader = tiny_loader(tiny_data, training_rows="prefixes", step_targets=40)
    parts = []
    for step, whole in zip(loader, whole_steps(loader), strict=True):
        assert all(batch.items.numel() * 4 <= 400 or len(batch.items) == 1 for batch in step)
        assert {batch.micro_batches for batch in step} == {len(step)}
        assert sum(len(batch.targets) for batch in step) == len(whole.targets)
        parts.append(len(step))
    assert min(parts) == 1 < max(parts)
    ranks = micro_batches_of(loader, 1, 2)
    for one, other, alone in zip(*ranks, parts, strict=True):
        assert len(one) == len(other) == alone


# Pieces of a step ---------------------------------------------------------------------------------

SPLITS = [
    (micro_batches, processes)
    for micro_batches in range(1, 5)
    for processes in range(1, 5)
    if micro_batches * processes <= 4
]


def tiny_loader(tiny_data: str, **more) -> SequenceLoader:
    return small_data(small_config(tiny_data, max_tokens=400, **more))[1].train


def rows_of(batch: SequenceBatch) -> list[tuple[list[int], list[int]]]:
    """The items and the supervised positions of each window that has targets."""
    width = batch.items.shape[1]
    supervised = torch.zeros(len(batch.items), width - 1, dtype=torch.bool)
    supervised.view(-1)[batch.target_index] = True
    assert torch.equal(batch.items[:, 1:][supervised], batch.targets)
    return [
        (items[items > 0].tolist(), positions.nonzero().flatten().tolist())
        for items, positions in zip(batch.items, supervised, strict=True)
        if positions.any()
    ]


def same_batch(one: SequenceBatch, other: SequenceBatch) -> bool:
    return all(
        torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(("micro_batches", "processes"), SPLITS)
def test_split_gives_each_window_to_one_micro_batch_when_a_step_is_divided(
    micro_batches, processes, tiny_data
):
    loader = tiny_loader(tiny_data)
    for epoch in range(2):
        loader.draw(epoch)
        whole, drawn = whole_steps(loader), [rows.tolist() for rows in loader.steps]
        ranks = micro_batches_of(loader, micro_batches, processes)
        assert [rows.tolist() for rows in loader.steps] == drawn
        assert [len(steps) for steps in ranks] == [len(whole)] * processes
        for n, undivided in enumerate(whole):
            assert all(len(steps[n]) == micro_batches for steps in ranks)
            batches = [batch for steps in ranks for batch in steps[n]]
            found = [row for batch in batches for row in rows_of(batch)]
            assert sorted(found) == sorted(rows_of(undivided))
            # Pieces differ by a window at most, and together keep to the budget.
            sizes = [len(rows_of(batch)) for batch in batches]
            assert max(sizes) - min(sizes) <= 1
            padded = sum(batch.items.numel() for batch in batches if len(batch.targets))
            assert padded * 4 <= 400


@pytest.mark.parametrize(("micro_batches", "processes"), SPLITS)
def test_split_tells_every_micro_batch_of_the_whole_step_when_it_is_divided(
    micro_batches, processes, tiny_data
):
    loader = tiny_loader(tiny_data)
    whole = whole_steps(loader)
    for steps in micro_batches_of(loader, micro_batches, processes):
        for undivided, batches in zip(whole, steps, strict=True):
            for batch in batches:
                assert batch.micro_batches == micro_batches * processes
                assert batch.step_targets == undivided.step_targets
                assert batch.step_items == undivided.step_items
                assert torch.equal(batch.distinct, undivided.distinct)
                assert torch.equal(batch.distinct[batch.distinct_index], batch.targets)


@pytest.mark.parametrize(("micro_batches", "processes"), SPLITS)
def test_split_gives_micro_batches_without_targets_when_a_step_has_few_windows(
    micro_batches, processes, tiny_data
):
    loader = tiny_loader(tiny_data, cut_probability=0.0)  # windows of 51 items, a step each
    windows = [len(rows) for rows in loader.steps]
    assert min(windows) == 1
    ranks = micro_batches_of(loader, micro_batches, processes)
    for n, count in enumerate(windows):
        batches = [batch for steps in ranks for batch in steps[n]]
        empty = [batch for batch in batches if len(batch.targets) == 0]
        assert len(empty) == max(len(batches) - count, 0)
        for batch in empty:
            # One window, so that a model can be run on it.
            assert len(batch.items) == 1
            assert (batch.items > 0).all()
            assert len(batch.target_index) == len(batch.distinct_index) == 0
            assert batch.target_index.dtype == batch.targets.dtype == torch.int64
            assert batch.step_targets > 0


@pytest.mark.parametrize(("micro_batches", "processes"), [(1, 1), (2, 1), (1, 3)])
def test_iterate_yields_the_rest_of_an_epoch_when_steps_are_skipped(
    micro_batches, processes, tiny_data
):
    loader = tiny_loader(tiny_data)
    loader.draw(3)
    loader.split(micro_batches, processes, rank=processes - 1)
    steps = list(loader)
    assert len(steps) == len(loader) > 3
    for first in (0, 1, 3, len(steps) - 1, len(steps)):
        rest = list(loader.iterate(first))
        assert len(rest) == len(steps) - first
        for one, other in zip(rest, steps[first:], strict=True):
            assert len(one) == len(other) == micro_batches
            assert all(map(same_batch, one, other))
