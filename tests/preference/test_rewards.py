"""Rewards and preferences of groups that are written out."""

import math

import pytest
import torch

from recbole_etegrec.preference import REWARDS, Proposed
from recbole_etegrec.preference.groups import by_reward, by_shared_codes

CODES = torch.tensor([[1, 2, 3], [1, 2, 4], [1, 5, 3], [6, 2, 3], [1, 2, 3]])


def proposed(items: list[int], target: int, found: bool = True, disliked: int = 0) -> Proposed:
    ids = torch.tensor([items])
    late = torch.arange(len(items)) >= len(items) - disliked
    return Proposed(
        items=ids,
        codes=CODES[ids],
        log_probs=torch.zeros(1, len(items), 3),
        target=torch.tensor([target]),
        target_codes=CODES[torch.tensor([target])],
        found=torch.tensor([found]),
        disliked=late.unsqueeze(0),
        head=lambda: -ids.float(),
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hit", [0, 1, 0, 0]),
        ("prefix", [1 / 3, 1, 0, 2 / 3]),
        ("item_head", [-2, -1, -3, -4]),
    ],
)
def test_reward_is_what_its_name_says(name, expected):
    found = REWARDS[name](proposed([2, 1, 3, 4], target=1))
    torch.testing.assert_close(found[0], torch.tensor(expected, dtype=found.dtype))


def test_ranked_reward_blames_what_stands_above_most():
    total = sum(1 / math.log2(place + 2) for place in range(3))
    found = REWARDS["ranked"](proposed([2, 1, 3], target=1))[0].tolist()
    assert found == pytest.approx([-1 / total, 1, -1 / math.log2(4) / total])
    missed = REWARDS["ranked"](proposed([2, 3, 1], target=1, found=False))[0].tolist()
    assert missed == [0, 0, 1]


def test_advantages_are_deviations_in_the_group_of_the_items_there_are():
    config = {"preference_reward": "prefix"}
    advantages, alive = by_reward(proposed([2, 1, 3, 0], target=1), config, 0.0)
    rewards = torch.tensor([1 / 3, 1, 0])
    expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    torch.testing.assert_close(advantages[0, :3], expected)
    assert advantages[0, 3] == 0 and alive.tolist() == [True]


def test_group_of_equal_rewards_is_dead():
    advantages, alive = by_reward(proposed([2, 3], target=1), {"preference_reward": "hit"}, 0.0)
    assert not advantages.any() and alive.tolist() == [False]


def negatives(items: list[int], share: float, most: int, hardest: int = 2, **more) -> list[int]:
    config = {"preference_hardest": hardest, "preference_negatives": most}
    advantages, _ = by_shared_codes(proposed(items, target=1, **more), config, share)
    assert advantages[0, items.index(1)] == 1
    return [item for item, a in zip(items, advantages[0].tolist(), strict=True) if a < 0]


def test_negatives_share_more_codes_with_the_target_as_the_phase_goes_on():
    # Item 3 shares none of its codes with item 1, item 2 the first, item 4 the first two.
    assert negatives([4, 2, 1, 3], share=0.0, most=1) == [3]
    assert negatives([4, 2, 1, 3], share=0.4, most=1) == [2]
    assert negatives([4, 2, 1, 3], share=0.9, most=1) == [4]
    assert negatives([4, 2, 1, 3], share=0.9, most=3, hardest=1) == [2, 3]
    assert negatives([4, 2, 1, 3], share=0.0, most=2) == [2, 3]


def test_low_ratings_come_first_among_negatives():
    assert negatives([3, 1, 2, 4], share=0.0, most=2, disliked=2) == [2, 4]
    assert negatives([3, 1, 2, 0], share=0.0, most=2, disliked=2) == [3, 2]


def test_group_without_negatives_is_dead():
    config = {"preference_hardest": 0, "preference_negatives": 2}
    _, alive = by_shared_codes(proposed([4, 2, 1], target=1), config, 0.5)
    assert alive.tolist() == [False]
