"""An engine whose steps are recorded, with recordings that compute anew: the CPU has no graphs."""

from types import SimpleNamespace

import pytest
import torch

from recbole_etegrec.captured_step import CapturedStep, _Recording
from recbole_etegrec.data.item_loader import ItemLoader
from recbole_etegrec.trainer.schedule import Stage
from tests.helpers import parameters_of
from tests.trainer.test_engine import STAGES, make_engine
from tests.trainer.trainers import WEIGHTS

# It makes more of sums that have been rounded otherwise: its steps are small.
T5 = {"backbone": "t5", "training_rows": "prefixes", "step_targets": 12}


class _Recomputed(CapturedStep):
    """A recording that is replayed by computing it again, into the same outputs."""

    def __init__(self, function, device):
        super().__init__(function, device)
        self.on, self.recorded, self.replayed = True, 0, 0

    def _compute(self, batch, kind):
        return self.function(batch, kind)

    def _record(self, batch, kind):
        batch = batch._make(v.clone() if torch.is_tensor(v) else v for v in batch)
        outputs = self.function(batch, kind)
        result, gradients = outputs
        written = [*result, *(g for g in gradients if g is not None)]
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            result, gradients = self.function(batch, kind)
            values = [*result, *(g for g in gradients if g is not None)]
            for place, value in zip(written, values, strict=True):
                place.copy_(value)

        return _Recording(batch, SimpleNamespace(replay=replay), outputs)


@pytest.fixture(autouse=True)
def nothing_is_pinned(monkeypatch):
    monkeypatch.setattr("recbole_etegrec.captured_step._pinned", lambda tensor: tensor)


def trained(
    data_path: str, run_dir, recorded: bool, rate: float = 1e-3, **more
) -> tuple[dict, list, CapturedStep]:
    """Weights and results after some steps of each kind."""
    engine, steps = make_engine(data_path, run_dir, **more)
    if recorded:
        engine.captures = (False, True)
        engine.captured = _Recomputed(engine._gradients_of, engine.device)
    items = ItemLoader(engine.model.n_items, batch_size=16, seed=0)
    alone = Stage("pretraining", "tokenizer", {"quantization": 1.0}, clip=False)
    both = Stage("joint", "both", WEIGHTS["both"])
    results = []
    for name in ("recommender", "tokenizer"):
        engine.start_optimizer(name, rate)
    for stage, loader in (
        (alone, [*items.iterate()] * 2),
        (STAGES["recommender"], steps * 2),
        (STAGES["tokenizer"], steps),
        (alone, steps * 2),
        (both, steps),
    ):
        engine.freeze_all_but(stage.trains)
        results += [engine.step(step, stage) for step in loader]
    engine.read_results()
    return parameters_of(engine.model), results, engine.captured


@pytest.mark.parametrize(
    "more",
    [{}, {"user_codes": 2}, {**T5, "rate": 1e-5}],
    ids=["histories", "users", "t5"],
)
def test_steps_move_the_same_weights_when_they_are_recorded(more, tiny_data, tmp_path):
    expected, results, _ = trained(tiny_data, tmp_path / "eager", recorded=False, **more)
    found, others, captured = trained(tiny_data, tmp_path / "captured", recorded=True, **more)
    assert 4 < captured.recorded < captured.replayed
    for result, other in zip(results, others, strict=True):
        torch.testing.assert_close(other.losses, result.losses, atol=1e-4, rtol=1e-4)
        assert not other.skipped
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-3, rtol=0, msg=name)
