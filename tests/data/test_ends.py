"""Targets behind the last items of users, whom nobody but a teacher knows."""

import numpy as np
import pytest

from recbole_etegrec.data.ends import draw_ends, with_ends
from recbole_etegrec.data.sequences import Sequences, Windows, make_prefixes
from recbole_etegrec.data.teacher import Taught
from tests.data.test_loader import times_supervised
from tests.helpers import small_config, small_data


def some_sequences(gap: int) -> tuple[Sequences, Windows]:
    """Of 5, 0, 1 and 8 items, with further items between them; the last has two windows."""
    lengths = np.array([5, 0, 1, 8])
    start = np.append(0, np.cumsum(lengths + gap)[:-1])
    end = start + lengths
    items = np.arange(100, 100 + end[-1] + gap)
    windows = Windows(
        np.append(start, start[3]), np.append(end, end[3]), np.append(start + 1, start[3] + 6)
    )
    windows.end[3] -= 2
    return Sequences(items, start, end, np.arange(4)), windows


@pytest.mark.parametrize("gap", [0, 2])
def test_each_sequence_with_items_gets_a_target_behind_them(gap):
    sequences, windows = some_sequences(gap)
    items, found, places = with_ends(sequences, windows)
    assert len(items) == 14 + 4 and len(places) == 3
    assert (items[places] == 0).all()
    targets = times_supervised(found, len(items))
    assert (targets[places] == 1).all() and targets.sum() == 3 + 4 + 0 + 5 + 2
    prefixes = make_prefixes(found, 50)
    by_target = dict(zip(prefixes.supervised_from.tolist(), prefixes.start.tolist(), strict=True))
    for number, place in zip((0, 2, 3), places, strict=True):
        own = sequences.items[sequences.start[number] : sequences.end[number]]
        assert items[by_target[place] : place].tolist() == own.tolist()


def test_items_are_drawn_as_probable_as_the_teacher_says():
    scores = np.log(np.array([[0.7, 0.3, 0.0], [0.0, 0.0, 1.0]]) + 1e-300)
    taught = Taught(np.array([[5, 6, 7], [5, 6, 7]]), scores)
    rng = np.random.default_rng(0)
    drawn = np.array([draw_ends(lambda places: taught, np.arange(2), rng) for _ in range(2000)])
    assert (drawn[:, 0] == 5).mean() == pytest.approx(0.7, abs=0.03)
    assert set(drawn[:, 0].tolist()) == {5, 6} and (drawn[:, 1] == 7).all()


def test_loader_has_the_same_targets_and_the_ends_when_it_is_to_teach_them(tiny_data):
    config = small_config(tiny_data, cut_probability=0.0)
    plain, loader = (small_data(config)[1].train for _ in range(2))

    class Says:
        def __call__(self, places):
            items = np.stack([places % 3 + 1, places % 3 + 2], axis=1)
            return Taught(items, np.zeros(items.shape, dtype=np.float32))

    def ask(items, windows):
        assert len(items) == len(plain.items) + len(plain._dataset.sequences.start)
        assert (windows.end - windows.start).sum() == len(items)
        return Says()

    loader.take_teacher(ask, ends=True)
    ends = set(loader.ends.tolist())
    users = len(plain._dataset.sequences.start)
    assert len(ends) == users

    def targets(of, skip=()):
        return sorted(
            int(of.items[place])
            for end, first in zip(of.windows.end, of.windows.supervised_from, strict=True)
            for place in range(first, end)
            if place not in skip
        )

    assert targets(loader, ends) == targets(plain)
    assert len(targets(loader)) == len(targets(plain)) + users
    drawn = loader.items[loader.ends].copy()
    for places, item in zip(loader.ends, drawn, strict=True):
        assert item in (places % 3 + 1, places % 3 + 2)
    loader.draw(1)
    assert not np.array_equal(loader.items[loader.ends], drawn)
    loader.draw(0)
    assert np.array_equal(loader.items[loader.ends], drawn)
