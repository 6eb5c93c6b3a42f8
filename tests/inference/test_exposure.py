"""The bonus of items that came after training, by the scores of a ranker that is made up."""

import pytest
import torch

from recbole_etegrec.inference.exposure import _largest, _Scores

USERS, KNOWN, K = 4000, 40, 20


def made_up(new_items: int, few: int | None = None) -> _Scores:
    """Scores where new items may have so many of 20 places.

    Args:
        few: known items that are ranked for the first user.
    """
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(USERS, KNOWN, generator=generator).sort(descending=True).values[:, :K]
    known[0, few:] = -torch.inf
    new = torch.randn(USERS, new_items, generator=generator).sort(descending=True).values
    place = torch.randint(-1, KNOWN, (USERS,), generator=generator)
    return _Scores(known, new, place.float())


def lost(scores: _Scores, bonus: float) -> float:
    """The part of the hits that is found no more, counted."""
    passed = scores.new + bonus > scores.known.flip(1)[:, : scores.new.shape[1]]
    hit = (scores.place >= 0) & (scores.place < K)
    return float((hit & (scores.place >= K - passed.sum(dim=1))).sum() / hit.sum())


@pytest.mark.parametrize("new_items", [1, 2])
def test_new_items_cost_the_others_what_they_may(new_items):
    scores = made_up(new_items)
    found = [_largest(scores, most) for most in (0.0, 0.01, 0.03, 0.05, 0.9)]
    for exposure, most in zip(found[:4], (0.0, 0.01, 0.03, 0.05), strict=True):
        assert most - 0.001 < exposure.cost <= most + 1e-4
        assert lost(scores, exposure.bonus) == pytest.approx(exposure.cost, abs=0.012)
    shares = [exposure.share for exposure in found]
    assert shares == sorted(shares) and shares[0] < 0.001
    assert shares[-1] == new_items / K  # everybody has all that there may be
    assert found[0].recall == pytest.approx(K / (KNOWN + 1), abs=0.02)


def test_users_whose_last_places_hit_nothing_are_shown_new_items_first():
    scores = made_up(1)
    surely = scores.known[:, -1] < scores.known[:, -1].median()
    place = torch.where(surely, 0.0, scores.place)
    assert _largest(scores._replace(place=place), 0.01).share > _largest(scores, 0.01).share


@pytest.mark.parametrize("most", [0.0, 0.02])
def test_a_user_with_few_known_items_does_not_set_the_bonus_of_all(most):
    whole, one = made_up(2), made_up(2, few=5)
    assert _largest(one, most).share == pytest.approx(_largest(whole, most).share, abs=0.001)


def test_there_may_be_nothing_to_measure_by():
    scores = made_up(1)
    nobody = scores._replace(place=torch.full((USERS,), -1.0))
    assert _largest(nobody, 0.02).cost == 0
    none = _largest(scores._replace(known=torch.full((USERS, K), -torch.inf)), 0.02)
    assert none.bonus == 0.0 and none.users == USERS
