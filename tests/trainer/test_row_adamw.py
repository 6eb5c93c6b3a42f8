"""AdamW of the rows that a step reads, against torch's own of all rows."""

import pytest
import torch

from recbole_etegrec.trainer import engine
from recbole_etegrec.trainer.row_adamw import RowAdamW
from recbole_etegrec.trainer.schedule import Stage
from tests.trainer.trainers import RECOMMENDATION, ready_trainer, run_stages

VALUES = {
    "item_head": True,
    "item_sample": 8,
    "candidates": 20,
    "clip_grad_norm": {"max_norm": 0.5},
}
STAGE = Stage("final", "recommender", {**RECOMMENDATION, "item": 0.5})


def steps_of(kind, sparse: bool, reads) -> tuple[torch.Tensor, dict]:
    """A table after steps that read some of its rows, and the optimizer's state of it."""
    generator = torch.Generator().manual_seed(0)
    table = torch.nn.Parameter(torch.randn(6, 3, generator=generator))
    other = torch.nn.Parameter(torch.ones(2))
    options = {"lr": 0.1, "weight_decay": 0.1}
    optimizer = kind([{"params": [table], "by_rows": True}, {"params": [other]}], **options)
    for rows in reads:
        target = torch.randn(len(rows), 3, generator=generator)
        read = torch.nn.functional.embedding(torch.tensor(rows), table, sparse=sparse)
        ((read - target).square().sum() + other.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not reads or (other < 1).all()
    return table.detach(), optimizer.state[table]


@pytest.mark.parametrize("sparse", [False, True])
def test_rows_move_as_adamw_moves_them_when_all_are_read(sparse):
    reads = [[0, 1, 2, 3, 4, 5, 2]] * 4
    expected, state = steps_of(torch.optim.AdamW, False, reads)
    found, own = steps_of(RowAdamW, sparse, reads)
    torch.testing.assert_close(found, expected)
    assert own.keys() == state.keys()
    for name in state:
        torch.testing.assert_close(own[name], state[name])


@pytest.mark.parametrize("sparse", [False, True])
def test_rows_that_are_not_read_stay(sparse):
    before = steps_of(RowAdamW, sparse, [])[0]
    found, state = steps_of(RowAdamW, sparse, [[1, 4], [1]])
    moved = (found != before).any(dim=1)
    assert moved.tolist() == [False, True, False, False, True, False]
    assert (state["exp_avg"].any(dim=1) == moved).all()


def test_nothing_moves_when_the_kernel_has_found_infinity():
    table = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = RowAdamW([{"params": [table], "by_rows": True}], lr=0.1)
    optimizer.found_inf = torch.ones(())
    table.grad = torch.full((3, 2), torch.inf)
    optimizer.step()
    assert torch.equal(table.detach(), torch.ones(3, 2))


def test_training_is_the_same_whether_gradients_are_sparse(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "ROWS_FROM", 1)
    tables = []
    for sparse in (True, False):
        trainer = ready_trainer(tiny_data, tmp_path / str(sparse), **VALUES)
        head = trainer.model.recommender.item_head
        assert head.by_rows and head.sparse
        head.sparse = sparse
        torch.manual_seed(0)
        run_stages(trainer, STAGE)
        tables.append(head.free.detach().clone())
        assert isinstance(trainer.engine.bare_optimizer("recommender"), RowAdamW)
    assert tables[0].any(dim=1)[1:].float().mean() > 0.5
    torch.testing.assert_close(tables[0], tables[1])


def test_small_catalogues_are_moved_as_a_whole(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run", **VALUES)
    assert not trainer.model.recommender.item_head.by_rows
    assert type(trainer.engine.bare_optimizer("recommender")) is torch.optim.AdamW
