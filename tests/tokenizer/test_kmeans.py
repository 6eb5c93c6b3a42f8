"""k-means by matrix products, as on a GPU, against scikit-learn's."""

import pytest
import torch

from recbole_etegrec.tokenizer import kmeans as module
from recbole_etegrec.tokenizer.kmeans import distinct_rows, kmeans, kmeans_by_products


def errors(vectors: torch.Tensor, clusters) -> torch.Tensor:
    return (vectors - clusters.centroids[clusters.nearest]).square().sum()


def test_both_ways_find_the_groups_when_they_are_far_apart():
    torch.manual_seed(0)
    groups = torch.randn(20, 8) * 10
    member = torch.arange(400) % 20
    vectors = groups[member] + torch.randn(400, 8) * 0.1
    expected, found = (way(vectors, 20, 1) for way in (kmeans, kmeans_by_products))
    for clusters in (expected, found):
        assert len(torch.stack([member, clusters.nearest]).unique(dim=1).T) == 20
    assert errors(vectors, found) == pytest.approx(float(errors(vectors, expected)), rel=1e-4)


def test_products_err_as_little_when_there_are_no_groups():
    vectors = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    found, again = (kmeans_by_products(vectors, 32, 1) for _ in range(2))
    assert torch.equal(found.centroids, again.centroids)
    assert errors(vectors, found) < 1.03 * errors(vectors, kmeans(vectors, 32, 1))


def test_every_vector_is_a_centroid_when_there_are_as_many():
    vectors = torch.randn(10, 4).repeat(3, 1)
    assert distinct_rows(vectors) == 10
    assert errors(vectors, kmeans_by_products(vectors, 10, 0)) < 1e-8


def test_few_vectors_stand_for_many_when_there_are_very_many(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(16, 8, generator=generator)
    vectors = centres.repeat(400, 1) + 0.2 * torch.randn(6400, 8, generator=generator)
    whole = kmeans(vectors, 32, 1)
    monkeypatch.setattr(module, "SAMPLED", 60)
    found = kmeans(vectors, 32, 1)
    assert torch.equal(found.nearest, kmeans(vectors, 32, 1).nearest)
    assert errors(vectors, found) < 1.05 * errors(vectors, whole)
    own = torch.cdist(vectors, found.centroids)
    assert torch.equal(found.nearest, own.argmin(dim=1))


def test_distinct_rows_are_counted_up_to_what_is_asked_for():
    vectors = torch.arange(12.0).repeat_interleave(30).unsqueeze(1)
    assert distinct_rows(vectors, 1) == 1 and distinct_rows(vectors, 5) == 5
    assert distinct_rows(vectors, 50) == 12


def test_clusters_are_found_when_rows_hardly_differ():
    vectors = 100 + torch.arange(12).unsqueeze(1) * 1e-5 + torch.zeros(12, 4)
    assert distinct_rows(vectors) > 4
    assert kmeans_by_products(vectors, 4, 0).centroids.isfinite().all()
