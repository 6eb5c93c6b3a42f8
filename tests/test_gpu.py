"""What differs on a GPU: recorded steps, steps left out, resuming, rankings: `pytest -m gpu`."""

import math
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from transformers.models.llama import modeling_llama

from recbole_etegrec.config import Config, find_recbole_model
from recbole_etegrec.data.item_embedding import sasrec
from recbole_etegrec.data.item_embedding.collaborative import largest_eigenvectors
from recbole_etegrec.data.item_loader import ItemLoader
from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.errors import Interrupted, TrainingError
from recbole_etegrec.evaluation.evaluate import evaluate
from recbole_etegrec.quick_start import run
from recbole_etegrec.recommender import autocast
from recbole_etegrec.recommender.backbone import llama_from_scratch
from recbole_etegrec.recommender.fused_kernels import FUSED_KERNELS, fuse
from recbole_etegrec.runs.load import load_run
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.tokenizer.kmeans import kmeans
from recbole_etegrec.trainer import ETEGRecTrainer
from recbole_etegrec.trainer import engine as engines
from recbole_etegrec.trainer.engine import Engine
from recbole_etegrec.trainer.schedule import Stage
from tests.helpers import changed_since, parameters_of, small_config, small_model, small_values
from tests.trainer.trainers import WEIGHTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
STAGES = {
    "pretraining": Stage("pretraining", "tokenizer", {"quantization": 1.0}, clip=False),
    "recommender": Stage("alternation", "recommender", WEIGHTS["recommender"]),
    "tokenizer": Stage("alternation", "tokenizer", WEIGHTS["tokenizer"]),
    "final": Stage("final", "recommender", {"recommendation": 1.0}),
    "both": Stage("joint", "both", WEIGHTS["both"]),
}
T5 = {"backbone": "t5", "training_rows": "prefixes", "step_targets": 12}


def make_engines(data_path: str, run_dir: Path, **more) -> Iterator[tuple[Engine, list, Config]]:
    """Two engines with the same weights, recorded and eager, and the steps of an epoch."""
    model = None
    for recorded in (True, False):
        values = {"max_tokens": 600, "cuda_graphs": recorded, **more}
        config = small_config(data_path, **values)
        made, loaders = small_model(config)
        model = model or deepcopy(made)
        yield (
            Engine(config, deepcopy(model), RunDirectory(run_dir)),
            list(loaders.train),
            config,
        )


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Between all weights; a single one may drift where its gradient is next to nothing."""
    return math.hypot(*(float((value - other[name]).norm()) for name, value in one.items()))


@pytest.mark.parametrize(
    ("name", "more"),
    [
        *((name, {}) for name in STAGES),
        ("recommender", {"user_codes": 2}),
        *((name, T5) for name in ("recommender", "tokenizer", "both")),
        ("recommender", {**T5, "precision": "bf16"}),
    ],
)
def test_steps_are_those_of_the_eager_path_when_they_are_recorded(name, more, tiny_data, tmp_path):
    stage, results, weights, start = STAGES[name], [], [], {}
    # T5 makes more of sums that have been rounded otherwise, and bf16 rounds more.
    rate = 1e-5 if "backbone" in more else 1e-3
    close = 5 if "precision" in more else 1
    for engine, steps, config in make_engines(tiny_data, tmp_path, **more):
        if name == "pretraining":
            items = ItemLoader(engine.model.n_items, batch_size=16, seed=0)
            steps = list(items.iterate())
        engine.freeze_all_but(stage.trains)
        for module in ("recommender", "tokenizer"):
            engine.start_optimizer(module, rate)
        start = parameters_of(engine.model)
        results.append([engine.step(step, stage) for step in steps * 3])
        engine.read_results()
        weights.append(parameters_of(engine.model))
        assert bool(engine.captured.recordings) == config["cuda_graphs"]
    for recorded, eager in zip(*results, strict=True):
        torch.testing.assert_close(recorded.losses, eager.losses, atol=1e-3, rtol=close * 1e-3)
        torch.testing.assert_close(recorded.norms, eager.norms, atol=1e-3, rtol=close * 2e-2)
    recorded, eager = weights
    assert distance(recorded, eager) < close * 0.03 * distance(start, eager)


def test_recorded_dropout_is_drawn_anew_from_the_seed(tiny_data, tmp_path):
    (engine, steps, _), _ = make_engines(tiny_data, tmp_path, dropout=0.5, residual_dropout=0.5)
    stage = STAGES["final"]
    engine.freeze_all_but("recommender")
    engine.start_optimizer("recommender", 1e-12)

    def loss_of(seed: int) -> float:
        torch.manual_seed(seed)
        return float(engine.step(steps[0], stage).losses)

    eager = [loss_of(1), *(loss_of(seed) for seed in (2, 3, 2, 1))]
    assert engine.captured.recordings
    assert eager[0] == pytest.approx(eager[4], rel=1e-4)
    assert eager[1] == pytest.approx(eager[3], rel=1e-4)
    assert len({round(loss, 3) for loss in eager}) == 3


@pytest.mark.parametrize("recorded", [True, False])
def test_step_moves_nothing_when_a_gradient_is_not_finite(
    recorded, tiny_data, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(engines, "MAX_BAD_STEPS", 2)
    engine, steps, _ = dict(zip((True, False), make_engines(tiny_data, tmp_path), strict=True))[
        recorded
    ]
    stage = STAGES["recommender"]
    engine.freeze_all_but("recommender")
    engine.start_optimizer("recommender", 1e-3)
    for _ in range(3):
        assert not engine.step(steps[0], stage).skipped
    before, vectors = parameters_of(engine.model), engine.model.item_embedding.clone()
    engine.model.item_embedding.fill_(float("nan"))
    assert engine.step(steps[0], stage).skipped
    assert changed_since(engine.model, before) == set()
    engine.read_results()
    assert caplog.messages[-1].endswith("not finite, step skipped")
    engine.model.item_embedding.copy_(vectors)
    assert not engine.step(steps[0], stage).skipped
    assert changed_since(engine.model, before)
    assert all(value.isfinite().all() for value in parameters_of(engine.model).values())
    engine.model.item_embedding.fill_(float("nan"))
    for _ in range(3):
        engine.step(steps[0], stage)
    with pytest.raises(TrainingError, match="not finite in 3 steps in a row"):
        engine.read_results()


def test_step_is_refused_in_one_line_when_it_cannot_be_recorded():
    code = """
from collections import namedtuple
import torch
from recbole_etegrec.captured_step import CapturedStep
batch = namedtuple("Batch", "values")(torch.ones(3))
step = CapturedStep(lambda batch, _: batch.values.sum().item(), torch.device("cuda"))
assert step(batch) == 3.0
step(batch)
"""  # in a process of its own: what was broken off stays half open
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert "TrainingError: cuda_graphs (True): a step cannot be recorded" in done.stderr


def test_run_ends_alike_when_it_was_stopped_and_resumed(tiny_data, tmp_path, monkeypatch):
    values = small_values(tiny_data, max_tokens=600, epochs=2, finetune_epochs=3, dropout=0.1)
    whole = run("ETEGRecLlama", "tiny", config_dict={**values, "run_dir": str(tmp_path / "whole")})
    train_epoch, begun = ETEGRecTrainer._train_epoch, []

    def stopped(trainer, stage, *rest):
        begun.append(stage)
        if len(begun) == 6:  # in the final phase
            raise Interrupted(15, "stopped")
        return train_epoch(trainer, stage, *rest)

    monkeypatch.setattr(ETEGRecTrainer, "_train_epoch", stopped)
    parts = {**values, "run_dir": str(tmp_path / "parts")}
    with pytest.raises(Interrupted):
        run("ETEGRecLlama", "tiny", config_dict=parts)
    resumed = run(config_dict={"resume": str(tmp_path / "parts")})
    assert resumed["best_valid_score"] == pytest.approx(whole["best_valid_score"], abs=0.05)
    one, other = (load_run(str(tmp_path / name))[1] for name in ("whole", "parts"))
    one, other = parameters_of(one), parameters_of(other)
    size = distance(one, {name: torch.zeros_like(value) for name, value in one.items()})
    assert distance(one, other) < 0.01 * size


def test_rankings_are_those_of_the_cpu(tiny_data, tmp_path):
    values = small_values(tiny_data, run_dir=str(tmp_path / "run"))
    run("ETEGRecLlama", "tiny", config_dict=values)
    config, model, _, train, _, test = load_run(str(tmp_path / "run"))
    on_gpu = evaluate(model, test, train._dataset, config)
    config["device"] = torch.device("cpu")
    on_cpu = evaluate(model.cpu(), test, train._dataset, config)
    assert on_gpu == pytest.approx(on_cpu, abs=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ranking", ["beam", "fused", "head"])
def test_rankings_of_few_users_are_those_of_launched_kernels_when_recorded(
    ranking, precision, tiny_data
):
    values = {"ranking": ranking, "item_head": True, "candidates": 20, "user_codes": 2}
    model, loaders = small_model(small_config(tiny_data, **values))
    model = model.cuda().eval()
    rows = loaders.test._dataset[torch.arange(12)].to("cuda")
    ranker, full = model.ranker, precision == "fp32"
    with autocast(precision, "cuda"):
        for users in (1, 3, 12):
            some = rows[:users]
            first = ranker.best(some, 2).items
            excluded = torch.arange(users).repeat_interleave(2), first.flatten().cpu()
            ranker.records = False
            expected = ranker.best(some, 10, excluded)
            ranker.records = True
            for _ in range(3):  # computed, recorded, replayed
                found = ranker.best(some, 10, excluded)
                assert not full or torch.equal(found.items, expected.items)
                most = 1e-4 if full else 2e-2
                torch.testing.assert_close(found.scores, expected.scores, atol=most, rtol=0)
    assert ranker._recorded.step.recordings


@pytest.mark.parametrize("name", FUSED_KERNELS)
def test_layers_give_nearly_the_same_by_fewer_kernels(name, monkeypatch):
    if name == "liger":
        pytest.importorskip("liger_kernel")
    # Positions are turned by other kernels for all LLaMAs of the process: this one's alone here.
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_llama.apply_rotary_pos_emb)
    torch.manual_seed(0)
    model = llama_from_scratch(
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        max_position_embeddings=64,
        init_std=0.05,
    ).cuda()
    inputs, found = torch.randn(2, 3, 17, 128, device="cuda"), []
    for fused in (False, True):
        if fused:
            fuse(model, name)
        model.zero_grad()
        states = model(inputs_embeds=inputs[0], use_cache=False).last_hidden_state
        (states * inputs[1]).sum().backward()
        found.append([states.detach(), *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-3 * float(one.abs().max()), rtol=1e-3)


def test_sasrec_learns_as_the_eager_path_when_its_steps_are_recorded(tiny_data):
    config = small_config(tiny_data, semantic_hidden_size=16)
    _, loaders = small_model(config)
    loader = SequenceLoader(
        loaders.train._dataset,
        max_tokens=100,
        code_length=1,
        training_rows="sequences",
        window_overlap=0.5,
        cut_probability=0.0,
        seed=0,
    )
    settings = {**sasrec.sasrec_settings(16, 50), "hidden_dropout_prob": 0.0}
    settings = {**dict(config.final_config_dict), **settings, "attn_dropout_prob": 0.0}
    torch.manual_seed(0)
    first = find_recbole_model("SASRec")(settings, loaders.train._dataset).cuda()
    losses, vectors = [], []
    for recorded in (True, False):
        model = deepcopy(first)
        step = sasrec.training_step(model, torch.device("cuda"), recorded)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        losses.append(
            [sasrec.train_epoch(model, loader, optimizer, step, loader.max_items) for _ in range(4)]
        )
        assert bool(step.recordings) == recorded
        vectors.append(model.item_embedding.weight.detach())
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    torch.testing.assert_close(*vectors, atol=5e-3, rtol=0)


def test_eigenvectors_and_clusters_are_found_on_the_device():
    table = sparse.random(200, 200, density=0.05, random_state=0)
    table = (table + table.T).tocsr()
    _, values = largest_eigenvectors(table, 10, np.random.default_rng(0), torch.device("cuda"))
    expected = np.linalg.svd(table.toarray(), compute_uv=False)[:10]
    np.testing.assert_allclose(values, expected, rtol=1e-6)
    vectors = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)).repeat(20, 1) * 10
    found = kmeans(vectors.cuda(), 20, 0)
    assert (vectors.cuda() - found.centroids[found.nearest]).square().sum() < 1e-2
