"""Items that might follow a beginning of a sequence, run together with it."""

import pytest
import torch

from recbole_etegrec.decoding import score_codes
from recbole_etegrec.recommender import Branches
from recbole_etegrec.recommender.backbone import checkpoint_activations
from tests.helpers import small_recommender

CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("head_items", [0, 9])
def test_branches_are_scored_as_behind_a_cached_history(length, head_items):
    recommender = small_recommender(code_length=length, head_items=head_items)
    items = torch.randint(1, 9, (3, 6), generator=torch.Generator().manual_seed(1))
    table = torch.randint(0, 4, (9, length), generator=torch.Generator().manual_seed(2))
    paths = torch.randint(0, 4, (3, 7, length), generator=torch.Generator().manual_seed(3))
    after = torch.tensor([5, 1, 3])
    index = torch.tensor([0, 4, 7, 11])
    given = {"items": items} if head_items else {}
    with torch.no_grad():
        output = recommender(table[items], index, branches=Branches(paths, after), **given)
        alone = recommender(table[items], index, **given)
        visible = torch.arange(6) < after.unsqueeze(1)
        history = recommender.encode_history(table[items], visible, items)
        expected = score_codes(recommender, history, paths)
    torch.testing.assert_close(output.branch_log_probs, expected, **CLOSE)
    torch.testing.assert_close(output.logits, alone.logits, **CLOSE)
    assert alone.branch_log_probs is None


def test_branches_have_the_same_gradient_when_activations_are_computed_anew():
    recommender = small_recommender().train()
    codes = torch.randint(0, 8, (2, 5, 4), generator=torch.Generator().manual_seed(1))
    paths = torch.randint(0, 3, (2, 6, 4), generator=torch.Generator().manual_seed(2))
    gradients = []
    for on in (False, True):
        checkpoint_activations(recommender.backbone, on)
        output = recommender(
            codes, torch.tensor([3, 7]), branches=Branches(paths, torch.tensor([4, 2]))
        )
        loss = output.branch_log_probs.sum()
        gradients.append(torch.autograd.grad(loss, recommender.code_embedding.codebooks)[0])
    torch.testing.assert_close(*gradients, **CLOSE)
