"""The residual quantizer and the tokenizers against slow references."""

import pytest
import torch

from recbole_etegrec.losses import quantization_loss
from recbole_etegrec.tokenizer import RQVAE, TOKENIZERS, ResidualQuantizer, Tokenizer
from recbole_etegrec.tokenizer import base as tokenizer_base


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_quantizer(levels: int = 3, code_num: int = 5, e_dim: int = 4) -> ResidualQuantizer:
    quantizer = ResidualQuantizer(levels=levels, code_num=code_num, e_dim=e_dim)
    with torch.no_grad():
        quantizer.codebooks.copy_(seeded(levels, code_num, e_dim, seed=9))
    return quantizer


def small_rqvae() -> RQVAE:
    torch.manual_seed(0)
    tokenizer = RQVAE(semantic_hidden_size=6, hidden_sizes=[8], e_dim=4, levels=3, code_num=5)
    with torch.no_grad():
        tokenizer.quantizer.codebooks.copy_(seeded(3, 5, 4, seed=9))
    return tokenizer


def small_tokenizer(name: str) -> Tokenizer:
    torch.manual_seed(0)
    return TOKENIZERS[name](semantic_hidden_size=6, hidden_sizes=[8], e_dim=4, levels=3, code_num=5)


def codes_used(quantizer: ResidualQuantizer, vectors: torch.Tensor) -> list[int]:
    """Distinct codes in use at each level."""
    return [len(level.unique()) for level in quantizer(vectors).codes.T]


def test_quantizer_equals_a_loop_when_vectors_are_random():
    quantizer, vectors = small_quantizer(), seeded(20, 4)
    with torch.no_grad():
        found = quantizer(vectors)
        probabilities = found.log_probabilities().exp()
        for row, vector in enumerate(vectors):
            residual = vector.clone()
            for level in range(3):
                rows = list(quantizer.codebooks[level])
                distances = torch.stack([(residual - e).square().sum() for e in rows])
                code = int(distances.argmin())
                assert found.codes[row, level] == code
                assert torch.equal(found.selected[row, level], rows[code])
                torch.testing.assert_close(found.residuals[row, level], residual)
                torch.testing.assert_close(
                    found.distances[row, level], distances, atol=1e-5, rtol=0
                )
                expected = (-distances).softmax(0)
                torch.testing.assert_close(probabilities[row, level], expected, atol=1e-5, rtol=0)
                residual = residual - rows[code]


def test_quantizer_reconstructs_exactly_when_vectors_are_sums_of_rows():
    quantizer = small_quantizer(levels=2)
    with torch.no_grad():
        quantizer.codebooks[0] *= 100
        picks = [(i, j) for i in range(5) for j in range(5)]
        first, second = torch.tensor(picks).T
        vectors = quantizer.codebooks[0][first] + quantizer.codebooks[1][second]
        found = quantizer(vectors)
    assert found.codes.tolist() == [list(pick) for pick in picks]


@pytest.mark.parametrize("level", range(3))
def test_quantizer_passes_gradient_to_the_encoder_when_only_one_level_is_used(level):
    tokenizer, embedding = small_rqvae(), seeded(7, 6)
    for loss_of in (
        lambda q: (q.residuals - q.selected.detach())[:, level].square().sum(),
        lambda q: q.log_probabilities()[:, level, 0].sum(),
    ):
        tokenizer.zero_grad()
        output, _ = tokenizer(embedding)
        loss_of(output.quantization).backward()
        for parameter in tokenizer.encoder.parameters():
            assert parameter.grad.abs().max() > 0


def test_quantizer_gives_rows_of_a_level_no_gradient_when_another_level_is_used():
    quantizer = small_quantizer()
    found = quantizer(seeded(7, 4))
    (found.residuals.detach() - found.selected)[:, 1].square().sum().backward()
    moved = quantizer.codebooks.grad.abs().amax(dim=-1) > 0  # [3, 5]
    assert not moved[0].any()
    assert not moved[2].any()
    assert set(moved[1].nonzero().flatten().tolist()) == set(found.codes[:, 1].tolist())


def test_rqvae_decodes_the_sum_of_its_rows_when_run_forward():
    tokenizer, embedding = small_rqvae(), seeded(7, 6)
    with torch.no_grad():
        output, of_latents = tokenizer(embedding)
        quantized = output.quantization.selected.sum(dim=1)
        expected = tokenizer.decoder(quantized)
    assert of_latents is None
    assert torch.equal(output.embedding, embedding)
    torch.testing.assert_close(output.reconstruction, expected, atol=1e-5, rtol=0)
    assert torch.equal(tokenizer.encode(embedding), output.quantization.codes)


def test_rqvae_quantizes_latents_as_they_are_when_given():
    tokenizer, latents = small_rqvae(), seeded(3, 4, seed=5)
    with torch.no_grad():
        _, found = tokenizer(seeded(7, 6), latents)
        expected = tokenizer.quantizer(latents)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_rqvae_passes_the_decoders_gradient_straight_through_when_rounding():
    tokenizer, embedding = small_rqvae(), seeded(7, 6)
    output, _ = tokenizer(embedding)
    (output.reconstruction - embedding).square().mean().backward()
    found = tokenizer.encoder[0].weight.grad.clone()
    assert tokenizer.quantizer.codebooks.grad is None

    tokenizer.zero_grad()
    encoded = tokenizer.encoder(embedding)
    quantized = tokenizer.quantizer(encoded).selected.sum(dim=1).detach().requires_grad_()
    (tokenizer.decoder(quantized) - embedding).square().mean().backward()
    encoded.backward(quantized.grad)
    torch.testing.assert_close(found, tokenizer.encoder[0].weight.grad)


def test_rqvae_gets_every_gradient_when_its_loss_is_minimised():
    tokenizer = small_rqvae()
    loss = quantization_loss(tokenizer(seeded(40, 6))[0], 0.25)
    loss.mean().backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_start_from_finds_the_clusters_when_vectors_are_clustered():
    centres = seeded(5, 4, seed=1) * 10
    vectors = centres.repeat(8, 1) + seeded(40, 4, seed=2) * 0.01
    quantizer = small_quantizer()
    quantizer.start_from(vectors, seed=0)
    found = quantizer(vectors)
    distance = torch.cdist(quantizer.codebooks[0], centres)
    assert distance.min(dim=1).values.max() < 0.1
    assert sorted(distance.argmin(dim=1).tolist()) == list(range(5))
    # Each further level starts from what the levels before leave over.
    error = (found.residuals - found.selected).detach().square().sum(-1).mean(0)
    assert error[0] > error[1] > error[2]


def test_start_from_uses_every_code_when_vectors_differ():
    quantizer, vectors = small_quantizer(), seeded(200, 4)
    quantizer.start_from(vectors, seed=0)
    assert codes_used(quantizer, vectors) == [5, 5, 5]


def test_start_from_gives_the_same_codebooks_when_the_seed_is_the_same():
    first, second, other = small_quantizer(), small_quantizer(), small_quantizer()
    for quantizer, seed in ((first, 0), (second, 0), (other, 1)):
        quantizer.start_from(seeded(200, 4), seed)
    assert torch.equal(first.codebooks, second.codebooks)
    assert not torch.equal(first.codebooks, other.codebooks)


@pytest.mark.parametrize("distinct", [1, 3])
def test_start_from_tells_vectors_apart_when_fewer_than_codes(distinct):
    quantizer = small_quantizer(levels=2)
    before = quantizer.codebooks.detach().clone()
    vectors = (seeded(distinct, 4) * 10).repeat(4, 1)
    quantizer.start_from(vectors, seed=0)
    assert quantizer.codebooks.isfinite().all()
    assert codes_used(quantizer, vectors)[0] == distinct
    assert torch.equal(quantizer.codebooks[0, distinct:], before[0, distinct:])


def test_revive_leaves_no_unused_code_when_vectors_are_distinct():
    vectors = seeded(200, 4)
    for seed in range(5):
        quantizer = small_quantizer(levels=2, code_num=16)
        with torch.no_grad():
            quantizer.codebooks.add_(1e3)
            quantizer.codebooks[:, 0] = 0
        assert codes_used(quantizer, vectors) == [1, 1]
        moved = quantizer.revive(vectors, torch.Generator().manual_seed(seed))
        assert moved >= 30
        assert codes_used(quantizer, vectors) == [16, 16]


def test_revive_keeps_codes_when_all_are_used():
    quantizer, vectors = small_quantizer(), seeded(200, 4)
    quantizer.start_from(vectors, seed=0)
    before = quantizer.codebooks.detach().clone()
    assert quantizer.revive(vectors, torch.Generator().manual_seed(0)) == 0
    assert torch.equal(quantizer.codebooks, before)


def test_rqvae_gives_the_codes_of_encode_when_autocast_is_on():
    torch.manual_seed(0)
    sizes = {"semantic_hidden_size": 10, "hidden_sizes": [16], "e_dim": 6}
    tokenizer = RQVAE(**sizes, levels=3, code_num=64)
    items, latents = torch.randn(500, 10), torch.randn(40, 6)
    with torch.no_grad():
        plain, sequence = tokenizer(items, latents)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast, cast_sequence = tokenizer(items, latents.bfloat16().float())
    assert torch.equal(cast.quantization.codes, tokenizer.encode(items))
    assert torch.equal(cast.reconstruction, plain.reconstruction)
    assert cast_sequence.distances.dtype == sequence.distances.dtype == torch.float32


def test_rqkmeans_reconstructs_by_the_sum_of_centroids_when_started():
    tokenizer, embedding = small_tokenizer("rqkmeans"), seeded(60, 6)
    tokenizer.start(embedding, seed=0)
    output, _ = tokenizer(embedding)
    residual = embedding
    for level, centroids in enumerate(tokenizer.quantizer.codebooks.detach()):
        code = torch.cdist(residual, centroids).argmin(dim=1)
        assert torch.equal(output.quantization.codes[:, level], code)
        for k in range(5):  # a centroid is the mean of what it stands for
            mean = residual[code == k].mean(dim=0)
            torch.testing.assert_close(centroids[k], mean, atol=1e-4, rtol=0)
        residual = residual - centroids[code]
    torch.testing.assert_close(output.reconstruction, embedding - residual)


def test_rqkmeans_has_codebooks_as_wide_as_embeddings_and_nothing_else():
    tokenizer = small_tokenizer("rqkmeans")
    assert {n: tuple(p.shape) for n, p in tokenizer.named_parameters()} == {
        "quantizer.codebooks": (3, 5, 6)
    }
    assert not tokenizer.pretrains


def test_rqkmeans_learns_at_every_level_when_only_the_reconstruction_is_asked():
    tokenizer, embedding = small_tokenizer("rqkmeans"), seeded(60, 6)
    output, _ = tokenizer(embedding)
    (output.reconstruction - embedding).square().mean().backward()
    assert (tokenizer.quantizer.codebooks.grad.abs().amax(dim=(1, 2)) > 0).all()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokenizers_do_the_same_in_parts_when_items_are_many(name, monkeypatch):
    tokenizer, embedding = small_tokenizer(name), seeded(60, 6)
    tokenizer.start(embedding, seed=0)
    with torch.no_grad():
        output, _ = tokenizer(embedding)
    codes, distances = output.quantization.codes, output.quantization.distances
    monkeypatch.setattr(tokenizer_base, "ROWS", 7)
    assert torch.equal(tokenizer.encode(embedding), codes)
    assert torch.equal(tokenizer.last_distances(embedding), distances[:, -1])
    error = (embedding - output.reconstruction).square().mean()
    assert tokenizer.reconstruction_error(embedding, codes) == pytest.approx(float(error), rel=1e-5)
