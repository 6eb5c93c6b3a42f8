"""Spreading collisions over the last level, against exact assignment and by its promises."""

import time

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from recbole_etegrec.tokenizer import collisions, spread_collisions
from recbole_etegrec.tokenizer.collisions import assign
from recbole_etegrec.tokenizer.item_codes import group_ids


def crowded(
    items: int, *, code_num: int = 16, used: int = 4, levels: int = 3, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest codes of which many collide, and distances to the last level's codes."""
    generator = torch.Generator().manual_seed(seed)
    distances = torch.rand(items, code_num, generator=generator)
    distances[:, :used] *= 0.3  # few codes are the nearest of many items
    first = torch.randint(used, (items, levels - 1), generator=generator)
    return torch.cat([first, distances.argmin(dim=1, keepdim=True)], dim=1), distances


def spread(codes: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
    return spread_collisions(codes, distances.shape[1], distances.__getitem__)


def group_sizes(codes: torch.Tensor) -> torch.Tensor:
    """For each item, how many have its codes."""
    groups = group_ids(codes, 1000)
    return torch.bincount(groups)[groups]


@pytest.mark.parametrize("seed", range(5))
def test_spread_leaves_no_collision_when_there_are_codes_enough(seed):
    codes, distances = crowded(100, seed=seed)
    before = group_sizes(codes)
    assert (before > 1).float().mean() > 0.3
    found = spread(codes, distances)
    assert group_sizes(found).max() == 1
    assert torch.equal(found[:, :-1], codes[:, :-1])
    assert torch.equal(found[before == 1], codes[before == 1])
    assert found.min() >= 0
    assert found.max() < 16


def test_spread_changes_nothing_when_no_items_collide():
    codes = torch.cartesian_prod(*[torch.arange(3)] * 3)

    def fail(rows):
        raise AssertionError("no distance is needed")

    assert torch.equal(spread_collisions(codes, 3, fail), codes)


@pytest.mark.parametrize("levels", [1, 3])
def test_spread_shares_codes_out_evenly_when_there_are_too_few(levels):
    codes, distances = crowded(100, code_num=8, used=1, levels=levels)
    codes[0, -1] = 7  # alone in its code, which stays its own
    codes[1:, -1] = 0
    found = spread(codes, distances)
    assert found[0, -1] == 7
    counts = torch.bincount(found[1:, -1], minlength=8)
    assert counts[7] == 0
    assert counts.max() == 15  # 99 items, 7 codes


def test_spread_tells_items_apart_when_their_distances_are_equal():
    distances = (3.0 ** torch.arange(16)).expand(5, 16)  # far beyond what a softmax can tell
    found = spread(torch.zeros(5, 3, dtype=torch.long), distances)
    assert found[:, -1].sort().values.tolist() == list(range(5))


def test_spread_gives_the_same_codes_when_items_come_in_other_blocks(monkeypatch):
    codes, distances = crowded(150)
    whole = spread(codes, distances)
    monkeypatch.setattr(collisions, "ROWS", 5)
    assert torch.equal(spread(codes, distances), whole)
    assert torch.equal(spread(codes, distances), whole)


@pytest.mark.parametrize(
    ("items", "places", "dearer"), [(3, 1, 1.001), (10, 1, 1.01), (30, 2, 1.1), (16, 1, 1.4)]
)
def test_assign_is_about_as_cheap_as_the_exact_assignment_when_codes_are_in_demand(
    items, places, dearer
):
    found = best = 0.0
    for seed in range(20):
        distances = crowded(items, seed=seed)[1]
        codes = assign(distances, torch.zeros(items, dtype=torch.long), torch.full((1, 16), places))
        assert torch.bincount(codes).max() <= places
        found += float(distances.gather(1, codes.unsqueeze(1)).sum())
        table = np.repeat(distances.numpy(), places, axis=1)
        best += table[linear_sum_assignment(table)].sum()
    assert best - 1e-4 <= found < dearer * best


def test_spread_takes_a_second_or_two_when_items_are_many():
    codes, distances = crowded(12_000, code_num=256, used=12)
    assert (group_sizes(codes) > 1).float().mean() > 0.3
    start = time.process_time()
    found = spread(codes, distances)
    assert time.process_time() - start < 5
    assert group_sizes(found).max() == 1
