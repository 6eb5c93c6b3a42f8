"""The bonus of items that came after training, by the scores of a ranker that is made up."""

from types import SimpleNamespace

import pytest
import torch

from recbole_etegrec.decoding import HeadRanker
from recbole_etegrec.inference import exposure

USERS, KNOWN, K = 200, 40, 20


def found(monkeypatch, wanted: float, new_items: int, ranked: int = K) -> exposure.Exposure:
    """What is found where new items may have two of 20 places.

    Args:
        ranked: known items that are ranked for the first user.
    """
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(USERS, KNOWN, generator=generator).sort(descending=True).values[:, :K]
    known[0, ranked:] = -torch.inf
    new = torch.full((USERS, K), -torch.inf)
    best = torch.randn(USERS, new_items, generator=generator).sort(descending=True).values
    new[:, :new_items] = best
    scores = exposure._Scores(known, new, known[:, 3])
    monkeypatch.setattr(exposure, "_score", lambda *_: scores)
    monkeypatch.setattr(exposure, "ranking_of", lambda _: "head")
    ranker = HeadRanker(None, SimpleNamespace(table=range(KNOWN + 1 + new_items)), None)
    model = SimpleNamespace(trained_items=KNOWN + 1, n_items=KNOWN + 1 + new_items, ranker=ranker)
    config = {"topk": [K], "new_item_exposure": wanted}
    return exposure.find_exposure(config, model, ())


@pytest.mark.parametrize("new_items", [1, 8])
def test_new_items_are_shown_more_the_more_they_are_to_be(new_items, monkeypatch):
    shares = [found(monkeypatch, wanted, new_items).share for wanted in (0.0, 0.5, 1.0, 3.0, 30.0)]
    assert shares == sorted(shares) and shares[0] < 0.001
    assert shares[-1] == pytest.approx(min(new_items, 2) / K)


def test_a_user_with_few_known_items_does_not_set_the_bonus_of_all(monkeypatch):
    for wanted in (0.0, 0.2, 0.5):
        share = found(monkeypatch, wanted, 8, ranked=5).share
        assert share == pytest.approx(wanted * 8 / (KNOWN + 8), abs=0.001)
