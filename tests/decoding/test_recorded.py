# ruff: noqa: F811, the fixture of another file
"""Searches in the forms that GPUs record: they find the same, and ask the device nothing."""

from copy import copy, deepcopy
from types import SimpleNamespace

import pytest
import torch
from recbole.data.interaction import Interaction
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recbole_etegrec import captured_step
from recbole_etegrec.captured_step import CapturedStep, _Recording
from recbole_etegrec.decoding import RANKERS, CodeRanker, HeadRanker, recorded
from recbole_etegrec.decoding.recorded import forms, in_form, rounded
from recbole_etegrec.tokenizer import UserCodes
from tests.decoding.test_rankers import FIELDS, N_ITEMS, batch  # noqa: F401
from tests.helpers import small_item_codes, small_recommender

CLOSE = {"atol": 1e-6, "rtol": 1e-6}
OPTIONS = {"num_beams": 12, "candidates": 9, "item_score_weight": 1.5, "item_index_from": None}
OPTIONS |= {"new_item_every": 4, "repeat_score": None}


def made(name: str, user_codes: int = 0, backbone: str = "llama") -> CodeRanker:
    codes = small_item_codes(n_items=N_ITEMS, code_num=12)
    if user_codes:
        codes.users = UserCodes(levels=user_codes, code_num=12, width=10)
        codes.users.lend(torch.randn(N_ITEMS + 1, 10, generator=torch.Generator().manual_seed(4)))
    recommender = small_recommender(backbone, code_num=12, head_items=N_ITEMS + 1)
    if user_codes:
        table = torch.randn(user_codes, 12, 12, generator=torch.Generator().manual_seed(5))
        recommender.code_embedding.user_table = torch.nn.Parameter(table)
    kind = RANKERS[name]
    return kind(recommender, codes, FIELDS, **{key: OPTIONS[key] for key in kind.keys})


@pytest.fixture(params=["beam", "fused", "head"])
def ranker(request) -> CodeRanker:
    return made(request.param)


def pairs(ranker: CodeRanker, rows: Interaction, count: int):
    """The best items of each row, to be left out."""
    best = ranker.best(rows, count).items
    return torch.arange(len(best)).repeat_interleave(best.shape[1]), best.flatten()


def assert_same(found, expected) -> None:
    """All that two searches give, item by item."""
    assert torch.equal(found.items, expected.items)
    for one, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("excludes", [0, 4, N_ITEMS - 2])
def test_search_in_a_form_finds_what_it_finds_otherwise(excludes, ranker, batch):
    excluded = pairs(ranker, batch, excludes) if excludes else None
    width = ranker.width(10)
    assert_same(ranker.find_recorded(batch, width, excluded), ranker.find(batch, width, excluded))


@pytest.mark.parametrize("name", ["beam", "fused"])
def test_search_in_a_form_reads_codes_of_users(name, batch):
    ranker = made(name, user_codes=2)
    assert_same(ranker.find_recorded(batch, 12, None), ranker.find(batch, 12, None))


@pytest.mark.parametrize("excludes", [False, True])
def test_search_in_a_form_passes_over_items_that_are_left_out(excludes, ranker, batch):
    gone = ranker.best(batch, 2).items.flatten().unique()
    excluded = (torch.zeros_like(gone), gone) if excludes else None
    ranker.codes.leave_out(gone)
    found = ranker.find_recorded(batch, 9, excluded)
    assert not torch.isin(found.items, gone).any()
    assert_same(found, ranker.find(batch, 9, excluded))


class NothingCrosses(TorchDispatchMode):
    """Refuses what would wait for a GPU, or bring a number there, neither of which is recorded."""

    reads = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "_unique")
    mixes = ("where.self", "index_put")  # numbers among tensors become tensors of the CPU

    def __torch_dispatch__(self, function, types, arguments=(), more=None):
        name = function.__name__
        assert not any(one in name for one in self.reads), name
        tensors = [part for part in tree_leaves(arguments) if torch.is_tensor(part)]
        if any(one in name for one in self.mixes):
            assert all(part.dim() or id(part) in self.made for part in tensors), name
        if name.startswith(("index.", "index_put")):
            assert not any(part.dtype == torch.bool for part in tensors[1:]), name
        outcome = function(*arguments, **(more or {}))
        if name.startswith("new_full"):
            self.made[id(outcome)] = outcome
        return outcome

    def __enter__(self):
        self.made: dict[int, torch.Tensor] = {}
        return super().__enter__()


@pytest.mark.parametrize("user_codes", [0, 2])
@pytest.mark.parametrize("name", ["beam", "fused", "head"])
def test_search_in_a_form_asks_the_device_nothing(name, user_codes, batch):
    ranker = made(name, user_codes)
    pairs = torch.tensor([0, 2]), torch.tensor([3, 7])
    form = in_form(batch[FIELDS.history][:, :6], pairs)
    ranker.recommender.item_head.all_vectors()
    with torch.no_grad(), NothingCrosses():
        found = ranker._search_in_form(form, ranker.width(10))
    assert {len(part) for part in found} == {4}
    for wrong in (lambda: form.items.sum().item(), lambda: torch.where(form.items > 0, 1, 0)):
        with pytest.raises(AssertionError), NothingCrosses():
            wrong()


class Recomputed(CapturedStep):
    """A recording that is replayed by computing it again, into the same outputs."""

    def __init__(self, function, device, **options):
        super().__init__(function, device, **options)
        self.on = True

    def _compute(self, batch, kind):
        return self.function(batch, kind)

    def _record(self, batch, kind):
        batch = batch._make(part.clone() for part in batch)
        outputs = self.function(batch, kind)

        def replay() -> None:
            for place, value in zip(outputs, self.function(batch, kind), strict=True):
                place.copy_(value)

        return _Recording(batch, SimpleNamespace(replay=replay), outputs)


def test_recordings_serve_other_histories_until_codes_or_vectors_are_others(
    ranker,
    batch,
    monkeypatch,
):
    monkeypatch.setattr(recorded, "CapturedStep", Recomputed)
    monkeypatch.setattr(captured_step, "_pinned", lambda tensor: tensor)
    other = Interaction(
        {FIELDS.history: batch[FIELDS.history].flip(0), FIELDS.length: torch.tensor([6, 3, 1])}
    )
    expected, others = (ranker.find(rows, 12, None) for rows in (batch, other))
    for _ in range(3):
        assert_same(ranker.find_recorded(batch, 12, None), expected)
        first = ranker.find_recorded(other, 12, None)
    assert_same(first, others)  # no later call has written over it
    assert len(ranker._recorded.step.recordings) == 1
    ranker.codes.rebuild(ranker.codes.table[1:, :-1].flip(0))
    assert_same(ranker.find_recorded(batch, 12, None), ranker.find(batch, 12, None))
    assert not ranker._recorded.step.recordings
    assert copy(ranker)._recorded is deepcopy(ranker)._recorded is None
    if isinstance(ranker, HeadRanker):
        with torch.no_grad():
            ranker.recommender.item_head.free += 1
        assert_same(ranker.find_recorded(batch, 12, None), ranker.find(batch, 12, None))


def test_encoders_and_models_that_learn_are_not_recorded(ranker):
    assert ranker.can_record
    ranker.recommender.train()
    assert not ranker.can_record
    ranker.recommender.eval().backbone.config._attn_implementation = "eager"
    assert not ranker.can_record
    ranker.recommender = small_recommender("t5")
    assert not ranker.can_record


def test_forms_are_few_and_have_room():
    assert [rounded(n, 1) for n in (1, 2, 3, 5, 32)] == [1, 2, 4, 8, 32]
    assert [rounded(n, 8) for n in (0, 1, 8, 9, 50, 100, 1000)] == [8, 8, 8, 16, 56, 112, 1024]
    found = list(forms(longest=50, users=8))
    assert len(found) == len(set(found)) == 4 * 7
    form = in_form(torch.arange(1, 10).view(3, 3), None)
    assert form.items.shape == (4, 8) and form.rows.shape == form.excluded.shape == (32,)
    assert form.items[3].tolist() == [7, 8, 9, 0, 0, 0, 0, 0]
    many = torch.ones(50, dtype=torch.long)
    assert in_form(torch.ones(1, 3, dtype=torch.long), (many * 0, many)).excluded.shape == (64,)
