"""What is said of codes beyond their use: neighbours and what is unknown."""

import pytest
import torch

from recbole_etegrec.tokenizer import health
from recbole_etegrec.tokenizer.health import CodeHealth, nearest_neighbours, neighbours_kept


def seeded(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cells", [1, 2**25])
def test_nearest_neighbours_equal_a_full_sort_when_items_are_few(cells, monkeypatch):
    monkeypatch.setattr(health, "CELLS", cells)
    vectors = seeded(40, 6)
    rows, nearest = nearest_neighbours(vectors)
    expected = torch.cdist(vectors, vectors).argsort(dim=1)[:, 1:11]  # 0: the item itself
    assert rows.tolist() == list(range(40))
    assert torch.equal(nearest.sort(dim=1).values, expected.sort(dim=1).values)


def test_nearest_neighbours_are_of_a_spread_sample_when_items_are_many():
    rows, nearest = nearest_neighbours(seeded(5000, 3))
    assert len(rows.unique()) == 2000
    assert (rows[0], rows[-1]) == (0, 4999)
    assert rows.diff().max() <= 3
    assert nearest.shape == (2000, 10)


def test_neighbours_kept_is_the_share_with_the_same_code_when_counted_by_hand():
    vectors = torch.cat([seeded(11, 2), seeded(11, 2) + 100])  # two clusters of eleven
    neighbours = nearest_neighbours(vectors)
    cluster = torch.arange(22) // 11
    assert neighbours_kept(cluster, neighbours) == 1.0
    assert neighbours_kept(torch.arange(22), neighbours) == 0.0
    cluster[0] = 2  # its ten neighbours lose it, and it loses them
    assert neighbours_kept(cluster, neighbours) == pytest.approx(1 - 20 / 220)


def test_code_health_tells_only_what_is_known_when_embeddings_were_not_asked():
    known = CodeHealth([1.0], [4.0], 0.25, 2, 0.5)
    assert "neighbours_kept" not in known.record()
    assert str(known) == (
        "usage/perplexity 100%/4, collisions 25.0% (largest group 2), codes changed 50.0%"
    )
    more = CodeHealth([1.0], [4.0], 0.0, 1, 0.5, 0.25, 0.125, 0.4)
    assert more.record()["nearest_collision_rate"] == 0.25
    assert str(more).endswith(
        ", collisions of nearest codes 25.0%, error 0.1250, neighbours kept 40.0%"
    )
