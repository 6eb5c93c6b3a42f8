"""The item head's loss against a softmax that is written out."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_etegrec.losses import item, item_loss
from recbole_etegrec.recommender import draw_candidates

ITEMS, WIDTH, TARGETS = 30, 6, 17  # without the padding item
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, vectors of all items, and targets, with gradients wanted."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(TARGETS, WIDTH, generator=generator).requires_grad_()
    vectors = torch.randn(ITEMS + 1, WIDTH, generator=generator).requires_grad_()
    return query, vectors, torch.randint(1, ITEMS + 1, (TARGETS,), generator=generator)


def scored(query, vectors, targets, ids, **options) -> torch.Tensor:
    own = torch.arange(len(targets))
    return item_loss(query, vectors[torch.cat([targets, ids])], own, ids, targets, **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("chunk", [1, 100, 2**22])
def test_item_loss_is_the_full_softmax_when_all_items_are_candidates(smoothing, chunk, monkeypatch):
    monkeypatch.setitem(item._SCORES, "cpu", chunk)
    query, vectors, targets = inputs()
    ids = draw_candidates(ITEMS + 1, ITEMS, query.device).ids
    assert torch.equal(ids, torch.arange(1, ITEMS + 1))
    loss = scored(query, vectors, targets, ids, smoothing=smoothing)
    (loss * 0.7).backward()
    fast = query.grad.clone(), vectors.grad.clone()
    query.grad = vectors.grad = None
    scores = query @ vectors[1:].T
    slow = F.cross_entropy(scores, targets - 1, reduction="sum", label_smoothing=smoothing)
    (slow * 0.7).backward()
    torch.testing.assert_close(loss, slow, **CLOSE)
    torch.testing.assert_close(fast, (query.grad, vectors.grad), **CLOSE)


def test_item_loss_has_the_gradient_of_its_formula_when_candidates_are_a_sample():
    query, vectors, targets = inputs()
    ids, share = torch.tensor([2, 3, 3, 9, 21, 30]), 6 / ITEMS
    targets[:3] = torch.tensor([3, 30, 1])  # there twice, there once, not there
    scored(query, vectors, targets, ids, share=share, smoothing=0.1).backward()
    fast = query.grad.clone(), vectors.grad.clone()
    query.grad = vectors.grad = None
    scores = query @ vectors[ids].T
    own = (query * vectors[targets]).sum(dim=1)
    others = scores.masked_fill(ids == targets.unsqueeze(1), -torch.inf).exp().sum(dim=1) / share
    total = (own.exp() + others).log()
    slow = (total - 0.9 * own - 0.1 * scores.mean(dim=1)).sum()
    slow.backward()
    loss = scored(query, vectors, targets, ids, share=share, smoothing=0.1)
    torch.testing.assert_close(loss, slow, **CLOSE)
    torch.testing.assert_close(fast, (query.grad, vectors.grad), **CLOSE)


@pytest.mark.parametrize("chunk", [1, 100, 2**22])
@pytest.mark.parametrize("sampled", [False, True])
def test_items_of_the_history_have_a_bonus_when_repeats_are_learned(chunk, sampled, monkeypatch):
    monkeypatch.setitem(item._SCORES, "cpu", chunk)
    query, vectors, targets = inputs()
    bonus = torch.tensor([-0.7], requires_grad=True)
    seen = torch.tensor([[4, 0, 3, 7], [0, 0, 0, 0], [5, 6, 0, 9]]).repeat(6, 1)[:TARGETS]
    targets[:3] = torch.tensor([3, 30, 1])  # a repeat, none, none
    real = torch.arange(TARGETS) != 5
    ids = torch.tensor([2, 3, 3, 9, 21, 30]) if sampled else torch.arange(1, ITEMS + 1)
    share = len(ids) / ITEMS
    options = {"share": share, "smoothing": 0.1, "real": real}
    loss = scored(query, vectors, targets, ids, seen=seen, repeat_bonus=bonus, **options)
    loss.backward()
    fast = query.grad.clone(), vectors.grad.clone(), bonus.grad.clone()
    query.grad = vectors.grad = bonus.grad = None

    def of(items):  # [n, m]
        again = (items.unsqueeze(2) == seen.unsqueeze(1)).any(dim=2)
        return torch.einsum("nd,nmd->nm", query, vectors[items]) + bonus * again

    scores, own = of(ids.expand(TARGETS, -1)), of(targets.unsqueeze(1)).squeeze(1)
    others = scores.masked_fill(ids == targets.unsqueeze(1), -torch.inf).exp().sum(dim=1) / share
    slow = ((own.exp() + others).log() - 0.9 * own - 0.1 * scores.mean(dim=1))[real].sum()
    slow.backward()
    torch.testing.assert_close(loss, slow, **CLOSE)
    torch.testing.assert_close(fast, (query.grad, vectors.grad, bonus.grad), **CLOSE)


def test_sampled_partition_sums_are_the_full_ones_in_expectation():
    query, vectors, targets = inputs()
    with torch.no_grad():
        own = (query * vectors[targets]).sum(dim=1)
        full = F.cross_entropy(query @ vectors[1:].T, targets - 1, reduction="none")
        torch.manual_seed(0)
        sums = torch.zeros(TARGETS)
        for _ in range(4000):
            found = draw_candidates(ITEMS + 1, 8, query.device)
            for n in range(3):
                row = slice(n, n + 1)
                loss = scored(query[row], vectors, targets[row], found.ids, share=found.share)
                sums[n] += (loss + own[n]).exp()
    torch.testing.assert_close(sums[:3] / 4000, (full + own).exp()[:3], atol=0, rtol=0.05)


def test_candidates_come_equally_often_and_in_order_when_drawn():
    torch.manual_seed(0)
    counts = torch.zeros(ITEMS + 1)
    for _ in range(3000):
        ids, share = draw_candidates(ITEMS + 1, 7, torch.device("cpu"))
        assert len(ids) == 7 and share == 7 / ITEMS and bool((ids.diff() >= 0).all())
        counts += torch.bincount(ids, minlength=ITEMS + 1)
    assert counts[0] == 0
    torch.testing.assert_close(
        counts[1:] / 3000, torch.full((ITEMS,), 7 / ITEMS), atol=0.04, rtol=0
    )


def test_item_loss_is_0_when_there_is_no_target():
    query, vectors, targets = inputs()
    ids = torch.arange(1, ITEMS + 1)
    loss = scored(query[:0], vectors, targets[:0], ids)
    loss.backward()
    assert loss.item() == 0 and float(vectors.grad.abs().sum()) == 0


def test_memory_does_not_grow_with_items_times_targets(monkeypatch):
    monkeypatch.setitem(item._SCORES, "cpu", 2**10)
    query, vectors = torch.randn(500, 4), torch.randn(1001, 4)
    targets = torch.randint(1, 1001, (500,))
    with LargestResult() as watched:
        scored(query, vectors, targets, torch.arange(1, 1001))
    assert watched.numbers == 1500 * 4  # the vectors themselves


class LargestResult(TorchDispatchMode):
    """Sees how many numbers the largest tensor has that is made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if torch.is_tensor(result):
            self.numbers = max(self.numbers, result.numel())
        return result
