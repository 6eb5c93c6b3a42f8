"""The losses of distillation against sums that are written out."""

import pytest
import torch

from recbole_etegrec.losses.distillation import code_distillation_loss, distillation_loss

CLOSE = {"atol": 1e-5, "rtol": 0}
INF = float("inf")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_distillation_is_the_divergence_over_the_candidates():
    query, vectors = torch.randn(2, 4), torch.randn(2, 3, 4)
    teacher = torch.tensor([[-1.0, -2.0, -4.0], [-0.5, -3.0, -INF]])
    found = distillation_loss(query, vectors, teacher, temperature=2.0)
    for row, count in enumerate((3, 2)):
        scores = (vectors[row, :count] @ query[row]) / 2
        p = (teacher[row, :count] / 2).softmax(dim=0)
        expected = 4 * (p * (p.log() - scores.log_softmax(dim=0))).sum()
        torch.testing.assert_close(found[row], expected, **CLOSE)
    same = torch.einsum("nd,nkd->nk", query, vectors)
    nothing = distillation_loss(query, vectors, same, temperature=1.0)
    torch.testing.assert_close(nothing, torch.zeros(2), **CLOSE)


def test_row_without_candidates_teaches_nothing():
    query = torch.randn(1, 4, requires_grad=True)
    loss = distillation_loss(query, torch.randn(1, 3, 4), torch.full((1, 3), -INF), 1.0)
    loss.sum().backward()
    assert loss.item() == 0 and not query.grad.any()


def test_codes_learn_what_is_known_of_the_candidates_paths():
    logits, target = torch.randn(1, 3, 5), torch.tensor([[2, 1, 0]])
    codes = torch.tensor([[[2, 1, 0], [2, 3, 4], [0, 1, 0]]])
    teacher = torch.tensor([[0.5, 0.3, 0.2]]).log()
    log_probs = logits[0].log_softmax(dim=1)
    # The third leaves the target's path at its first code, the second at its second.
    expected = 0.5 * (log_probs[0, 2] + log_probs[1, 1] + log_probs[2, 0])
    expected = expected + 0.3 * (log_probs[0, 2] + log_probs[1, 3]) + 0.2 * log_probs[0, 0]
    found = code_distillation_loss(logits, target, codes, teacher, temperature=1.0)
    torch.testing.assert_close(found, -expected.unsqueeze(0) / 3, **CLOSE)
