"""Losses against values worked out by hand or by slow loops."""

import math

import pytest
import torch
from torch.nn import functional as F

from recbole_etegrec.losses import (
    preference_semantic_alignment,
    quantization_loss,
    recommendation_loss,
    sequence_item_alignment,
)
from recbole_etegrec.tokenizer import RQVAE, Quantization, TokenizerOutput


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_recommendation_loss_is_the_mean_over_a_targets_codes_when_computed_by_hand():
    logits, codes = seeded(3, 2, 5), torch.tensor([[0, 4], [2, 2], [3, 1]])
    terms = []
    for row in range(3):
        for level in range(2):
            exponentials = [math.exp(x) for x in logits[row, level].tolist()]
            terms.append(-math.log(exponentials[codes[row, level]] / sum(exponentials)))
    expected = torch.tensor(terms).view(3, 2).mean(dim=1)
    torch.testing.assert_close(recommendation_loss(logits, codes), expected, atol=1e-6, rtol=0)


def test_quantization_loss_is_the_formula_when_computed_by_hand():
    # Two items, d_z = 2, two levels, D = 2.
    output = TokenizerOutput(
        torch.tensor([[1.0, 2.0], [1.0, 1.0]]),
        Quantization(
            torch.zeros(2, 2, dtype=torch.long),
            torch.zeros(2, 2, 3),
            torch.tensor([[[3.0, 1.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]),
            torch.tensor([[[2.0, 1.0], [0.0, 2.0]], [[0.0, 0.0], [2.0, 0.0]]]),
        ),
        torch.tensor([[0.0, 4.0], [1.0, 4.0]]),
    )
    # The first: reconstruction (1 + 4) / 2; levels (1 + 0) / 2 + (1 + 4) / 2.
    assert quantization_loss(output, 0.25).tolist() == [
        2.5 + 3.0 + 0.25 * 3.0,
        4.5 + 2.0 + 0.25 * 2.0,
    ]


def test_quantization_loss_moves_rows_and_encoder_apart_when_beta_is_zero():
    torch.manual_seed(0)
    tokenizer = RQVAE(
        semantic_hidden_size=6, hidden_sizes=[8], e_dim=4, levels=3, code_num=5
    ).eval()
    output, _ = tokenizer(seeded(7, 6))
    v, e = output.quantization.residuals, output.quantization.selected
    gradients = {}
    for beta in (0.0, 0.25):
        loss = quantization_loss(output, beta)
        reconstruction = (output.embedding - output.reconstruction).pow(2).mean(-1)
        gradients[beta] = torch.autograd.grad(
            (loss - reconstruction).mean(), (v, e), retain_graph=True, allow_unused=True
        )
    scale = 2 / (7 * 4)
    torch.testing.assert_close(gradients[0.25][0], 0.25 * scale * (v - e).detach())
    torch.testing.assert_close(gradients[0.0][0], torch.zeros_like(v))
    for beta in (0.0, 0.25):
        torch.testing.assert_close(gradients[beta][1], scale * (e - v).detach())


def test_sia_is_the_sum_of_both_divergences_when_distributions_differ():
    item = seeded(3, 2, 5).log_softmax(-1)
    sequence = seeded(4, 2, 5, seed=1).log_softmax(-1)
    index = torch.tensor([2, 0, 2, 1])
    expected = torch.zeros(4)
    for row, target in enumerate(index.tolist()):
        for level in range(2):
            p, q = item[target, level], sequence[row, level]
            expected[row] += F.kl_div(q, p, log_target=True, reduction="sum")
            expected[row] += F.kl_div(p, q, log_target=True, reduction="sum")
    found = sequence_item_alignment(item, sequence, index)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_sia_is_zero_when_distributions_are_equal():
    item = seeded(3, 2, 5).log_softmax(-1)
    index = torch.tensor([2, 0, 2, 1])
    assert sequence_item_alignment(item, item[index], index).tolist() == [0.0] * 4


def test_sia_stays_finite_when_distances_are_large():
    item = (seeded(3, 2, 5) * 1e4).log_softmax(-1)
    sequence = (seeded(3, 2, 5, seed=1) * 1e4).log_softmax(-1).requires_grad_()
    loss = sequence_item_alignment(item, sequence, torch.arange(3))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert sequence.grad.isfinite().all()


def slow_psa(
    preference: torch.Tensor, reconstruction: torch.Tensor, index: list[int], temperature: float
) -> torch.Tensor:
    """A loop over rows: one way to all distinct items, the other way to rows of other items."""
    found = []
    for row, target in enumerate(index):
        similarity = [
            F.cosine_similarity(preference[row], item, dim=0) / temperature
            for item in reconstruction
        ]
        total = torch.logsumexp(torch.stack(similarity), 0) - similarity[target]
        others = [n for n, other in enumerate(index) if other != target]
        similarity = [
            F.cosine_similarity(preference[n], reconstruction[target], dim=0) / temperature
            for n in (row, *others)
        ]
        total = total + torch.logsumexp(torch.stack(similarity), 0) - similarity[0]
        found.append(total)
    return torch.stack(found)


@pytest.mark.parametrize("index", [[0, 1, 2, 3], [2, 0, 2, 1, 2, 3], [0, 0, 1, 1]])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_psa_equals_a_loop_over_rows_when_targets_repeat(index, temperature):
    preference, reconstruction = seeded(len(index), 6), seeded(max(index) + 1, 6, seed=1)
    found = preference_semantic_alignment(
        preference, reconstruction, torch.tensor(index), temperature
    )
    expected = slow_psa(preference, reconstruction, index, temperature)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_psa_is_zero_without_nan_when_all_rows_share_one_target():
    preference = seeded(5, 6).requires_grad_()
    reconstruction = seeded(1, 6, seed=1).requires_grad_()
    loss = preference_semantic_alignment(
        preference, reconstruction, torch.zeros(5, dtype=torch.long), 0.07
    )
    loss.sum().backward()
    torch.testing.assert_close(loss, torch.zeros(5), atol=1e-6, rtol=0)
    assert preference.grad.isfinite().all()
    assert reconstruction.grad.isfinite().all()


def test_psa_ignores_length_when_vectors_are_scaled():
    preference, reconstruction = seeded(4, 6), seeded(4, 6, seed=1)
    index = torch.arange(4)
    plain = preference_semantic_alignment(preference, reconstruction, index, 0.07)
    scaled = preference_semantic_alignment(preference * 9, reconstruction * 0.1, index, 0.07)
    torch.testing.assert_close(scaled, plain, atol=1e-5, rtol=0)


def slow_others(
    preference: torch.Tensor, reconstruction: torch.Tensor, index: list[int], temperature: float
) -> torch.Tensor:
    """For each distinct item, by a loop: log sum exp over the latents of other items."""
    found = []
    for target, item in enumerate(reconstruction):
        similarity = [
            F.cosine_similarity(latent, item, dim=0) / temperature
            for latent, own in zip(preference, index, strict=True)
            if own != target
        ]
        found.append(torch.logsumexp(torch.stack([*similarity, torch.tensor(-1e9)]), 0))
    return torch.stack(found)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
@pytest.mark.parametrize("cut", [2, 5])
@pytest.mark.parametrize("index", [[0, 1, 2, 3, 4, 5], [2, 0, 2, 1, 2, 3], [0, 0, 1, 1, 1, 1]])
def test_psa_equals_the_undivided_batch_when_the_other_half_is_combined(index, cut, temperature):
    vectors = seeded(6, 6), seeded(max(index) + 1, 6, seed=1)
    undivided = [vector.clone().requires_grad_() for vector in vectors]
    expected = preference_semantic_alignment(*undivided, torch.tensor(index), temperature)
    expected.mean().backward()

    preference, reconstruction = halved = [vector.clone().requires_grad_() for vector in vectors]
    losses = []
    for mine, theirs in ((slice(cut), slice(cut, None)), (slice(cut, None), slice(cut))):
        other = slow_others(preference[theirs], reconstruction, index[theirs], temperature)
        losses.append(
            preference_semantic_alignment(
                preference[mine],
                reconstruction,
                torch.tensor(index[mine]),
                temperature,
                lambda own, other=other: torch.logaddexp(own, other),
            )
        )
    torch.testing.assert_close(torch.cat(losses), expected, atol=1e-4, rtol=0)
    (torch.cat(losses).sum() / 6).backward()
    for found, whole in zip(halved, undivided, strict=True):
        torch.testing.assert_close(found.grad, whole.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("combined", [False, True])
def test_losses_are_empty_without_nan_when_a_batch_has_no_targets(combined):
    none = torch.zeros(0, dtype=torch.long)
    logits, preference = (torch.zeros(0, *shape, requires_grad=True) for shape in ((2, 5), (6,)))
    sequence = torch.zeros(0, 2, 5, requires_grad=True)
    items, reconstruction = seeded(3, 2, 5).requires_grad_(), seeded(3, 6).requires_grad_()
    others = seeded(3, seed=1)
    losses = [
        recommendation_loss(logits, torch.zeros(0, 2, dtype=torch.long)),
        sequence_item_alignment(items.log_softmax(-1), sequence.log_softmax(-1), none),
        preference_semantic_alignment(
            preference,
            reconstruction,
            none,
            0.07,
            (lambda own: torch.logaddexp(own, others)) if combined else None,
        ),
    ]
    assert [loss.shape for loss in losses] == [(0,)] * 3
    sum(loss.sum() for loss in losses).backward()
    for tensor in (logits, sequence, preference):
        assert tensor.grad.shape == tensor.shape
    for tensor in (items, reconstruction):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))
