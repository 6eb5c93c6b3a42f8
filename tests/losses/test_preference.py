"""The losses of candidates against sums that are written out, and against finite differences."""

import pytest
import torch

from recbole_etegrec.losses.preference import divergence, dpo_loss, grpo_loss
from recbole_etegrec.recommender import Branches
from tests.helpers import small_item_codes, small_recommender

CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_grpo_is_the_sum_over_the_candidates_there_are():
    log_probs, reference = -torch.rand(2, 3, 4), -torch.rand(2, 3, 4)
    advantages = torch.tensor([[1.5, -0.5, -1.0], [1.0, -1.0, 7.0]])
    there = torch.tensor([[True, True, True], [True, True, False]])
    found = grpo_loss(log_probs, reference, advantages, there, kl_weight=0.3)
    for row, count in enumerate((3, 2)):
        ratio = reference[row, :count] - log_probs[row, :count]
        away = (ratio.exp() - ratio - 1).mean(dim=1)
        expected = 0.3 * away - advantages[row, :count] * log_probs[row, :count].mean(dim=1)
        torch.testing.assert_close(found[row], expected.mean(), **CLOSE)


def test_divergence_is_0_where_models_agree_and_above_elsewhere():
    log_probs = -torch.rand(5)
    assert not divergence(log_probs, log_probs).any()
    assert (divergence(log_probs, log_probs + torch.tensor([1.0, -1, 2, -2, 0.1])) > 0).all()


def test_dpo_of_one_negative_is_the_logistic_loss_of_the_margin():
    log_probs, reference = -torch.rand(1, 2, 3), -torch.rand(1, 2, 3)
    margin = 0.5 * (log_probs - reference).sum(dim=2)[0]
    expected = -torch.nn.functional.logsigmoid(margin[0] - margin[1])
    found = dpo_loss(log_probs, reference, torch.tensor([[1.0, -1.0]]), beta=0.5)
    torch.testing.assert_close(found[0], expected, **CLOSE)


def test_dpo_is_a_softmax_over_negatives_and_leaves_the_others_out():
    log_probs, reference = -torch.rand(1, 4, 3), -torch.rand(1, 4, 3)
    margin = 0.5 * (log_probs - reference).sum(dim=2)[0]
    expected = -margin[[2, 0, 3]].log_softmax(dim=0)[0]
    found = dpo_loss(log_probs, reference, torch.tensor([[-1.0, 0.0, 1.0, -1.0]]), beta=0.5)
    torch.testing.assert_close(found[0], expected, **CLOSE)


@pytest.mark.parametrize("row", [[1.0, 0.0], [0.0, -1.0], [0.0, 0.0]])
def test_group_without_a_pair_teaches_nothing(row):
    log_probs = torch.randn(1, 2, 3, requires_grad=True)
    loss = dpo_loss(log_probs, torch.zeros(1, 2, 3), torch.tensor([row]), beta=0.5)
    loss.sum().backward()
    assert loss.item() == 0 and not log_probs.grad.any()


def grpo(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    advantages = torch.tensor([[1.5, -0.5, -1.0, 0.0]]).expand(len(log_probs), -1)
    there = torch.ones_like(advantages, dtype=torch.bool)
    return grpo_loss(log_probs, reference, advantages, there, kl_weight=0.5).sum()


def dpo(log_probs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    advantages = torch.tensor([[-1.0, 1.0, 0.0, -1.0]]).expand(len(log_probs), -1)
    return dpo_loss(log_probs, reference, advantages, beta=0.5).sum()


@pytest.mark.parametrize("objective", [grpo, dpo])
def test_gradient_is_that_of_finite_differences_on_a_toy_trie(objective):
    recommender, codes = small_recommender(), small_item_codes(n_items=12)
    history, candidates = torch.randint(1, 13, (3, 6)), torch.randint(1, 13, (3, 4))
    candidates[:, 1] = candidates[:, 0] % 12 + 1  # two at least that differ
    branches = Branches(codes(candidates), torch.tensor([5, 2, 3]))
    index = torch.tensor([4, 6, 12])

    def log_probs() -> torch.Tensor:
        return recommender(codes(history), index, branches=branches).branch_log_probs

    reference = log_probs().detach() + 0.3 * torch.randn(3, 4, 4)
    parameters = [p for p in recommender.parameters() if p.requires_grad]
    value = objective(log_probs(), reference)
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    known = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    steepest = [g for _, g in known]
    for seed in range(3):
        torch.manual_seed(seed)
        directions = steepest if seed == 0 else [g * torch.rand_like(g) for g in steepest]
        length = torch.stack([d.norm() for d in directions]).norm()
        expected = sum((d * g).sum() for d, g in zip(directions, steepest, strict=True)) / length
        values, step = [], 1e-3
        with torch.no_grad():
            for move in (step, -2 * step):
                for direction, (parameter, _) in zip(directions, known, strict=True):
                    parameter += move * direction / length
                values.append(objective(log_probs(), reference))
            for direction, (parameter, _) in zip(directions, known, strict=True):
                parameter += step * direction / length
        found = (values[0] - values[1]) / (2 * step)
        torch.testing.assert_close(found, expected, rtol=0.01, atol=1e-3)
