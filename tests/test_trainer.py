"""Stages, early stopping, pretraining and evaluation, on a real small model."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recbole.utils import init_seed
from safetensors.torch import load_file

from recbole_etegrec.errors import UserError
from recbole_etegrec.losses import quantization_loss
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.run_directory import RunDirectory
from recbole_etegrec.trainer import ETEGRecTrainer
from recbole_etegrec.trainer.checkpoint import load_model
from recbole_etegrec.trainer.evaluation import evaluate, sample_users
from recbole_etegrec.trainer.pretraining import pretraining_epoch
from recbole_etegrec.trainer.schedule import Stage
from recbole_etegrec.trainer.trainer import _constant, _cosine
from tests.helpers import (
    Loaders,
    changed_since,
    parameters_of,
    small_config,
    small_model,
    whole_steps,
)

NO_STAGES = {"tokenizer_epochs": 0, "epochs": 0, "finetune_epochs": 0}
METRICS = {"metrics": ["Recall", "NDCG", "MRR"], "topk": [1, 5, 20], "valid_metric": "NDCG@5"}


def make_trainer(data_path: str, run_dir: Path, **more) -> tuple[ETEGRecTrainer, Loaders]:
    config = small_config(data_path, **more)
    model, loaders = small_model(config)
    return ETEGRecTrainer(config, model, RunDirectory.create(run_dir)), loaders


def ready_trainer(data_path: str, run_dir: Path, **more) -> ETEGRecTrainer:
    """A trainer that knows its data and has run no stage."""
    trainer, loaders = make_trainer(data_path, run_dir, **NO_STAGES, **more)
    worst = trainer.best_valid_score
    trainer.fit(loaders.train, loaders.valid)
    assert trainer.progress.epochs_done == 0
    trainer.best_valid_score, trainer.best_valid_result = worst, None
    trainer.keeper.best_state = None
    return trainer


def run_stages(
    trainer: ETEGRecTrainer, *stages: Stage, rate: float = 0.01, schedule: Callable = _constant
) -> None:
    """Run stages with fresh optimizers, after whatever has been run."""
    trainer.keeper.progress = replace(trainer.progress, index=0, stale=0)
    trainer._run(list(stages), rate, schedule)


def metrics_lines(trainer: ETEGRecTrainer) -> list[dict]:
    """The records of epochs; that of the first codes comes between them."""
    lines = map(json.loads, trainer.run_dir.metrics.read_text().splitlines())
    return [line for line in lines if line["phase"] != "codes"]


# What a stage changes ---------------------------------------------------------------------------

BOOKS = "recommender.code_embedding.codebooks"
TOKENIZER_BOOKS = "tokenizer.quantizer.codebooks"


def of_module(names, module: str) -> set[str]:
    return {name for name in names if name.startswith(module + ".")}


def adapters(names) -> set[str]:
    return {name for name in names if "_adapter" in name}


def changes(trainer: ETEGRecTrainer, stage: Stage) -> tuple[set[str], set[str], bool]:
    """Parameters that a stage changed, all parameters, and whether codes changed."""
    before, table = parameters_of(trainer.model), trainer.model.codes.table.clone()
    run_stages(trainer, stage)
    changed = changed_since(trainer.model, before)
    return changed, set(before), not torch.equal(trainer.model.codes.table, table)


def test_tokenizer_stage_changes_the_tokenizer_alone_when_codes_stay(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run")
    stage = Stage("alternation", "tokenizer", sia=0.1, psa=0.1, quantization=1.0)
    changed, names, codes_changed = changes(trainer, stage)
    assert changed == of_module(names, "tokenizer")
    assert not codes_changed


def test_tokenizer_stage_also_moves_the_shared_codebooks_when_codes_are_rebuilt(
    tiny_data, tmp_path
):
    rate = {"alternation_tokenizer_learning_rate": 0.05}
    trainer = ready_trainer(tiny_data, tmp_path / "run", **rate)
    stage = Stage("alternation", "tokenizer", quantization=1.0, rebuild_codes=True)
    changed, names, codes_changed = changes(trainer, stage)
    assert changed == of_module(names, "tokenizer") | {BOOKS}
    assert codes_changed


def test_tokenizer_stage_leaves_the_rest_when_only_sia_is_weighted(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run")
    changed, names, _ = changes(trainer, Stage("alternation", "tokenizer", sia=0.1))
    tokenizer = of_module(names, "tokenizer")
    assert changed == {name for name in tokenizer if ".decoder." not in name}


@pytest.mark.parametrize("aligned", [False, True])
def test_recommender_stage_changes_no_encoder_when_codebooks_are_shared(
    aligned, tiny_data, tmp_path
):
    trainer = ready_trainer(tiny_data, tmp_path / "run", weight_decay=0.0)
    weight = 0.1 if aligned else 0.0
    stage = Stage("alternation", "recommender", 1.0, weight, weight)
    changed, names, codes_changed = changes(trainer, stage)
    expected = of_module(names, "recommender") - (set() if aligned else adapters(names))
    assert changed == expected | {TOKENIZER_BOOKS}
    assert not codes_changed
    model = trainer.model
    books = model.recommender.code_embedding.codebooks
    assert torch.equal(books, model.tokenizer.quantizer.codebooks)


def test_recommender_stage_leaves_the_tokenizer_when_it_alone_moves_codebooks(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run", codebook_update="tokenizer_only")
    stage = Stage("alternation", "recommender", 1.0, 0.1, 0.1)
    changed, names, codes_changed = changes(trainer, stage)
    assert changed == of_module(names, "recommender") - {BOOKS}
    assert not codes_changed


def test_finetuning_stage_leaves_the_tokenizer_when_codebooks_are_shared(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run", weight_decay=0.0)
    changed, names, codes_changed = changes(trainer, Stage("finetune", "recommender", 1.0))
    assert changed == of_module(names, "recommender") - adapters(names)
    assert not codes_changed


def test_stages_change_only_their_own_when_they_alternate(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run")
    tokenizer = Stage("alternation", "tokenizer", 0.0, 0.1, 0.1, 1.0)
    recommender = Stage("alternation", "recommender", 1.0, 0.1, 0.1)
    for _ in range(2):  # optimizer state of one stage must not move its module in the next
        changed, names, _ = changes(trainer, tokenizer)
        assert changed == of_module(names, "tokenizer")
        changed, names, _ = changes(trainer, recommender)
        assert changed == of_module(names, "recommender") | {TOKENIZER_BOOKS}
    before = parameters_of(trainer.model.recommender)
    run_stages(trainer, recommender, tokenizer)
    assert len(changed_since(trainer.model.recommender, before)) == len(before)


def test_both_modules_learn_in_each_step_when_training_is_joint(tiny_data, tmp_path):
    rate = {"alternation_tokenizer_learning_rate": 0.05}
    trainer = ready_trainer(tiny_data, tmp_path / "run", **rate)
    changed, names, codes_changed = changes(
        trainer, Stage("alternation", "both", 1.0, 0.1, 0.1, 1.0, rebuild_codes=True)
    )
    assert changed == names
    assert codes_changed
    model, (line,) = trainer.model, metrics_lines(trainer)
    books = model.recommender.code_embedding.codebooks
    assert torch.equal(books, model.tokenizer.quantizer.codebooks)
    losses = [line[name] for name in Stage.LOSSES]
    assert all(0 < loss < 100 for loss in losses)
    assert trainer.progress.schedule == dict.fromkeys(
        ("tokenizer", "recommender"), len(trainer.train_data)
    )


def test_joint_step_takes_the_parts_one_after_the_other_when_it_trains_both(tiny_data, tmp_path):
    """The recommender's part meets the codebooks that the tokenizer's part has moved."""
    both = Stage("alternation", "both", 1.0, 0.1, 0.1, 1.0)
    models = []
    for name in ("joint", "in_turn"):
        trainer = ready_trainer(tiny_data, tmp_path / name)
        engine = trainer.engine
        pieces = next(iter(trainer.train_data))
        if name == "joint":
            engine.step(pieces, both)
        else:
            for part, to in zip(both.parts, ("recommender", "tokenizer"), strict=True):
                engine.freeze_all_but(part.trains)
                engine.step(pieces, part)
                engine.model.copy_codebooks(to=to)
        models.append(parameters_of(engine.model))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_final_stage_starts_from_the_untrained_recommender_when_it_restarts(
    tiny_data, tmp_path, monkeypatch
):
    """Also when the run is stopped in that stage, whose scores are its own."""
    values = {"restart_recommender": True, "epochs": 4, **METRICS}
    trainer, loaders = make_trainer(tiny_data, tmp_path / "run", **values)
    model = trainer.model
    first = {k: v for k, v in parameters_of(model).items() if k.startswith("recommender.")}
    starts, run_stages_of = [], trainer._run

    def watched(stages, *more):
        starts.append(parameters_of(model))
        run_stages_of(stages, *more)

    def stopped(*_):
        if trainer.progress.phase == "finetune":
            raise KeyboardInterrupt
        return evaluate_as_before(*_)

    evaluate_as_before = trainer._evaluate
    monkeypatch.setattr(trainer, "_run", watched)
    monkeypatch.setattr(trainer, "_evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(loaders.train, loaders.valid)
    _, final = starts
    for name, value in first.items():
        assert torch.equal(final[name], value) == (name != BOOKS)
    assert torch.equal(final[BOOKS], final[TOKENIZER_BOOKS])
    assert trainer.best_valid_score == -math.inf
    assert trainer.keeper.best_description["phase"] == "alternation"

    resumed = ETEGRecTrainer(trainer.config, trainer.model, trainer.run_dir)
    resumed._resume()
    assert resumed.best_valid_score == -math.inf
    resumed.fit(loaders.train, loaders.valid, resume=True)
    assert resumed.keeper.best_description["phase"] == "finetune"


# What follows a tokenizer epoch -----------------------------------------------------------------


def test_everything_uses_the_new_codes_when_the_tokenizer_was_trained(tiny_data, tmp_path):
    values = {"alternation_tokenizer_learning_rate": 0.05, "ranking": "exact"}
    trainer = ready_trainer(tiny_data, tmp_path / "run", **values)
    model = trainer.model
    (rows,) = [interaction for interaction, *_ in trainer.valid_data]
    batch = whole_steps(trainer.train_data)[0]
    old = model.codes(batch.items), model.full_sort_predict(rows)
    run_stages(trainer, Stage("alternation", "tokenizer", quantization=1.0, rebuild_codes=True))
    semantic = model.tokenizer.encode(model.item_embedding[1:])
    table = model.codes.table[1:]
    assert torch.equal(table[:, :3], semantic)
    assert len(table.unique(dim=0)) == len(table)
    assert torch.equal(model.codes.trie.codes, table[model.codes.trie.items - 1])
    books = model.recommender.code_embedding.codebooks
    assert torch.equal(books, model.tokenizer.quantizer.codebooks)
    assert not torch.equal(model.codes(batch.items), old[0])

    # Evaluation ranks by teacher-forced log-probabilities of the new codes.
    scores = model.full_sort_predict(rows)
    assert (scores[:, 1:] - old[1][:, 1:]).abs().max() > 0.1
    for item in (1, 17, 40):
        forced = []
        for history, length in zip(rows["item_id_list"], rows["item_length"], strict=True):
            sequence = torch.cat([history[:length], torch.tensor([item])])[None]
            logits = model.recommender(model.codes(sequence), length[None] - 1).logits
            forced.append(logits.log_softmax(-1)[0, range(4), model.codes.table[item]].sum())
        torch.testing.assert_close(scores[:, item], torch.stack(forced), atol=1e-4, rtol=0)
    assert metrics_lines(trainer)[-1]["changed"] > 0


def test_training_batch_uses_the_new_codes_when_the_table_changed(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run")
    stage, model = Stage("alternation", "recommender", 1.0), trainer.model
    batch = whole_steps(trainer.train_data)[0]
    with torch.no_grad():
        before = trainer.engine.losses(batch, stage)["recommendation"]
        swapped = model.codes.table[1:].flip(0).clone()
        model.codes.set_table(swapped)
        after = trainer.engine.losses(batch, stage)["recommendation"]
        logits = model.recommender(swapped[batch.items - 1], batch.target_index).logits
        expected = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), swapped[batch.targets - 1].flatten()
        )
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=0)
    assert abs(after - before) > 1e-4


# The loop ---------------------------------------------------------------------------------------


def test_trainer_sees_every_target_in_fresh_batches_when_epochs_pass(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run", max_tokens=600)
    epochs = []
    for epoch in range(2):
        trainer.train_data.draw(epoch)
        epochs.append([batch.items for batch in whole_steps(trainer.train_data)])
    assert [items.tolist() for items in epochs[0]] != [items.tolist() for items in epochs[1]]
    stage = Stage("finetune", "recommender", 1.0)
    run_stages(trainer, stage, stage)
    train = trainer.train_data._dataset.inter_feat
    targets = len(train) - len(train["user_id"].unique())
    assert [line["targets"] for line in metrics_lines(trainer)] == [targets, targets]
    tokens = [sum(4 * int((items > 0).sum()) for items in epoch) for epoch in epochs]
    assert [line["tokens"] for line in metrics_lines(trainer)] == tokens
    assert [line["skipped"] for line in metrics_lines(trainer)] == [0, 0]


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("aligned", [False, True])
def test_trainer_records_the_means_of_weighted_losses_when_nothing_moves(
    aligned, micro_batches, tiny_data, tmp_path
):
    values = {"max_tokens": 600, "gradient_accumulation_steps": micro_batches}
    trainer = ready_trainer(tiny_data, tmp_path / "run", **values)
    weight = 0.1 if aligned else 0.0
    stage = Stage("alternation", "recommender", 1.0, weight, weight)
    run_stages(trainer, stage, rate=0.0)
    (record,) = metrics_lines(trainer)
    total, targets = dict.fromkeys(stage.weights, 0.0), 0
    with torch.no_grad():
        for step in trainer.train_data:
            assert len(step) == micro_batches
            targets += step[0].step_targets
            for batch in step:
                for name, share in trainer.engine.losses(batch, stage).items():
                    total[name] += share.item() * batch.step_targets
    assert record["targets"] == targets
    assert {name for name in Stage.LOSSES if name in record} == set(total)
    for name, value in total.items():
        assert record[name] == pytest.approx(value / targets, rel=1e-4), name
    assert record["phase"] == "alternation"
    assert record["lr"] == 0.0
    groups = ("backbone", "codebooks", "collision_table", "projectors", "adapters")
    norms = {name: value for name, value in record.items() if name.startswith("norm_")}
    assert set(norms) == {f"norm_{group}" for group in groups}
    assert {name for name, norm in norms.items() if norm > 0} == {
        name for name in norms if aligned or name != "norm_adapters"
    }


def test_trainer_lowers_every_loss_when_it_is_weighted(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run")
    stage = Stage("alternation", "recommender", 1.0, 0.1, 0.1)
    run_stages(trainer, *[stage] * 6)
    first, *_, last = metrics_lines(trainer)
    assert all(last[name] < first[name] for name in ("recommendation", "sia", "psa"))
    trainer = ready_trainer(tiny_data, tmp_path / "other")
    run_stages(trainer, *[Stage("alternation", "tokenizer", 0.0, 0.1, 0.1, 1.0)] * 6)
    first, *_, last = metrics_lines(trainer)
    assert all(last[name] < first[name] for name in ("quantization", "sia", "psa"))


def test_trainer_keeps_the_best_model_when_later_ones_are_worse(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run", valid_users=0, clip_grad_norm=None)
    good = Stage("finetune", "recommender", 1.0, evaluate=True)
    # Ascending the loss makes a model worse, whatever the noise.
    bad = Stage("finetune", "recommender", -1.0, evaluate=True)
    run_stages(trainer, *[good] * 3, *[bad] * 5)
    lines = metrics_lines(trainer)
    scores = [line["valid_result"]["ndcg@10"] for line in lines]
    best = max(range(8), key=lambda n: (scores[n], n))
    assert scores[7] < scores[best] - 0.05
    assert trainer.best_valid_score == scores[best]
    assert trainer.best_valid_result == lines[best]["valid_result"]
    kept = json.loads((trainer.run_dir.best / "model.json").read_text())
    assert kept["epoch"] == best
    assert kept["valid_result"] == lines[best]["valid_result"]
    state = load_file(trainer.run_dir.best / "model.safetensors")
    for name, value in trainer.keeper.best_state.items():
        assert torch.equal(state[name], value)
    assert trainer._evaluate(trainer.valid_data, "") == lines[7]["valid_result"]
    assert trainer.evaluate(trainer.valid_data) == lines[best]["valid_result"]


def test_fit_returns_the_best_models_result_over_all_users_when_a_sample_chose_it(
    tiny_data, tmp_path
):
    values = {"tokenizer_epochs": 1, "epochs": 2, "finetune_epochs": 2, "eval_step": 1}
    trainer, loaders = make_trainer(tiny_data, tmp_path / "run", valid_users=20, **values)
    score, result = trainer.fit(loaders.train, loaders.valid)
    assert score == result["ndcg@10"]
    assert trainer.evaluate(loaders.valid, load_best_model=False) == result
    assert trainer.evaluate(loaders.valid, load_best_model=True) == result
    phases = [line["phase"] for line in metrics_lines(trainer)]
    assert phases == ["pretraining", "alternation", "alternation", "finetune", "finetune"]
    assert [line["epoch"] for line in metrics_lines(trainer)[1:]] == [0, 1, 2, 3]


def test_fit_evaluates_when_no_epoch_was_asked_for(tiny_data, tmp_path):
    trainer, loaders = make_trainer(tiny_data, tmp_path / "run", **NO_STAGES)
    score, result = trainer.fit(loaders.train, loaders.valid)
    assert 0 <= score <= 1
    assert trainer.evaluate(loaders.valid) == result


@pytest.mark.parametrize("patience", [0, 2])
def test_trainer_stops_early_when_nothing_improves(patience, tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run", stopping_step=patience)
    trainer.best_valid_score = 2.0  # more than any NDCG
    stage = Stage("finetune", "recommender", 1.0, evaluate=True)
    quiet = Stage("finetune", "recommender", 1.0)
    run_stages(trainer, quiet, *[stage] * 10)
    # RecBole's: more than stopping_step in a row
    assert trainer.progress.epochs_done == 1 + patience + 1
    assert trainer.keeper.best_state is None


def test_trainer_takes_the_lower_score_when_the_metric_is_better_small(tiny_data, tmp_path):
    values = {"metrics": ["NDCG", "AveragePopularity"], "valid_metric": "AveragePopularity@10"}
    trainer = ready_trainer(tiny_data, tmp_path / "run", **values)
    assert trainer.best_valid_score == float("inf")
    run_stages(trainer, *[Stage("finetune", "recommender", 1.0, evaluate=True)] * 3)
    scores = [line["valid_result"]["averagepopularity@10"] for line in metrics_lines(trainer)]
    assert trainer.best_valid_score == min(scores)


def test_trainer_steps_by_each_modules_own_rate_when_a_cosine_decays(tiny_data, tmp_path):
    values = {"warmup_steps": 0, "max_tokens": 600, "finetune_epochs": 3, "epochs": 0}
    trainer, loaders = make_trainer(
        tiny_data, tmp_path / "run", finetune_learning_rate=0.004, tokenizer_epochs=0, **values
    )
    trainer.fit(loaders.train, loaders.valid)
    rates = [line["lr"] for line in metrics_lines(trainer)]
    assert rates[0] > rates[1] > rates[2]
    assert rates[2] == pytest.approx(0, abs=1e-9)
    assert rates[0] == pytest.approx(0.004 * (1 + math.cos(math.pi / 3)) / 2, rel=0.1)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [(_constant, [0.5, 1.0, 1.0, 1.0]), (_cosine, [0.5, 1.0, 0.5, 0.0])],
)
def test_trainer_warms_up_over_a_share_of_its_steps_when_it_is_below_one(
    schedule, expected, tiny_data, tmp_path
):
    # Without cuts, an epoch has as many steps as any other.
    values = {"warmup_steps": 0.5, "max_tokens": 600, "cut_probability": 0.0}
    trainer = ready_trainer(tiny_data, tmp_path / "run", **values)
    assert len(trainer.train_data) > 3
    stage = Stage("finetune", "recommender", 1.0)
    run_stages(trainer, *[stage] * 4, rate=0.01, schedule=schedule)
    rates = [line["lr"] / 0.01 for line in metrics_lines(trainer)]
    assert rates == pytest.approx(expected, abs=1e-9)


def test_weight_decay_spares_tables_norms_and_biases_when_it_is_set(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run", weight_decay=0.3)
    decays = {
        id(p): group["weight_decay"]
        for group in trainer.engine.optimizers["recommender"].param_groups
        for p in group["params"]
    }
    for name, parameter in trainer.model.recommender.named_parameters():
        spared = parameter.ndim < 2 or "codebooks" in name or "collision_table" in name
        assert decays[id(parameter)] == (0.0 if spared else 0.3), name


# The checkpoint ---------------------------------------------------------------------------------


def test_load_model_gives_codes_and_scores_back_when_it_was_saved(tiny_data, tmp_path):
    values = {"ranking": "exact", "tokenizer_epochs": 2}
    trainer, loaders = make_trainer(tiny_data, tmp_path / "run", **values)
    trainer.fit(loaders.train, loaders.valid)
    fresh = ETEGRecLlama(trainer.config, loaders.train._dataset).eval()
    assert fresh.codes.digest() != trainer.model.codes.digest()
    load_model(fresh, trainer.run_dir.best)
    assert fresh.codes.digest() == trainer.model.codes.digest()
    (rows,) = [interaction for interaction, *_ in loaders.test]
    assert torch.equal(fresh.full_sort_predict(rows), trainer.model.full_sort_predict(rows))


@pytest.mark.parametrize("saved", [True, False])
def test_trainer_leaves_two_checkpoints_to_go_on_from_when_saved(saved, tiny_data, tmp_path):
    values = {**NO_STAGES, "finetune_epochs": 2}
    trainer, loaders = make_trainer(tiny_data, tmp_path / "run", **values)
    trainer.fit(loaders.train, loaders.valid, saved=saved)
    run_dir = trainer.run_dir
    assert {path.exists() for path in (run_dir.best, run_dir.last, run_dir.previous)} == {saved}


def test_load_model_refuses_when_nothing_was_saved(tiny_data, tmp_path):
    model, _ = small_model(small_config(tiny_data))
    with pytest.raises(UserError, match="holds no model.safetensors"):
        load_model(model, tmp_path)


# Pretraining ------------------------------------------------------------------------------------


def reconstruction_error(model: ETEGRecLlama) -> float:
    with torch.no_grad():
        output, _ = model.tokenizer(model.item_embedding[1:])
        return quantization_loss(output, model.beta)[1].mean().item()


def test_pretraining_improves_the_tokenizer_alone_when_it_runs(tiny_data, tmp_path):
    values = {**NO_STAGES, "tokenizer_epochs": 40, "tokenizer_batch_size": 16}
    trainer, loaders = make_trainer(
        tiny_data, tmp_path / "run", tokenizer_learning_rate=0.005, **values
    )
    model = trainer.model
    first, before = reconstruction_error(model), parameters_of(model)
    assert trainer.fit(loaders.train) == (None, None)
    assert reconstruction_error(model) < 0.7 * first
    assert changed_since(model, before) <= {BOOKS, *of_module(before, "tokenizer")}
    records = metrics_lines(trainer)
    assert [record["epoch"] for record in records] == list(range(40))
    assert {record["phase"] for record in records} == {"pretraining"}
    assert torch.equal(model.codes.table[1:, :3], model.tokenizer.encode(model.item_embedding[1:]))
    health = model.codes.health(model.codes.table[1:, :3])
    assert records[-1]["usage"] == health.usage
    assert records[-1]["perplexity"] == pytest.approx(health.perplexity)
    assert records[-1]["collision_rate"] == pytest.approx(health.collision_rate)
    assert not any(p.requires_grad for p in model.tokenizer.parameters())


def test_pretraining_epoch_follows_from_its_seed_and_leaves_the_codes_when_it_runs(tiny_data):
    tokenizers, records = [], []
    for seed in (5, 5, 6):
        model, _ = small_model(small_config(tiny_data))
        model.tokenizer.requires_grad_(True)
        optimizer = torch.optim.AdamW(model.tokenizer.parameters(), lr=0.005)
        before, codes = parameters_of(model), model.codes.digest()
        torch.manual_seed(len(tokenizers))
        records.append(pretraining_epoch(model, optimizer, batch_size=16, seed=seed, revive=True))
        assert changed_since(model, before) == of_module(before, "tokenizer")
        assert model.codes.digest() == codes
        tokenizers.append(model.tokenizer)
    assert records[0] == records[1] != records[2]
    assert not changed_since(tokenizers[1], parameters_of(tokenizers[0]))


# Evaluation -------------------------------------------------------------------------------------


def hand_metrics(ranks: list[int], cutoffs: list[int]) -> dict[str, float]:
    """Recall, NDCG and MRR of one target a user, from its rank (1 is best)."""
    count, found = len(ranks), {}
    for k in cutoffs:
        hits = [rank for rank in ranks if rank <= k]
        found[f"recall@{k}"] = len(hits) / count
        found[f"ndcg@{k}"] = sum(1 / math.log2(rank + 1) for rank in hits) / count
        found[f"mrr@{k}"] = sum(1 / rank for rank in hits) / count
    return found


def evaluate_quietly(model, loader, train_dataset, config) -> dict[str, float]:
    found = evaluate(model, loader, train_dataset, config, show_progress=False, title="")
    assert {type(value) for value in found.values()} == {float}
    return found


def test_evaluate_equals_hand_ranking_when_ranking_is_exact(tiny_data):
    config = small_config(tiny_data, ranking="exact", eval_batch_size=25, **METRICS)
    model, loaders = small_model(config)
    ranks = []
    for rows, *_ in loaders.test:
        scores = []
        for item in range(1, 41):
            one = rows.repeat(1)
            one["item_id"] = torch.full_like(rows["item_id"], item)
            scores.append(model.predict(one))
        scores = torch.stack(scores, dim=1)  # [B, 40]
        own = scores.gather(1, rows["item_id"].unsqueeze(1) - 1)
        ranks += (1 + (scores > own).sum(dim=1)).tolist()
    users = len(loaders.test._dataset.inter_feat)
    assert len(ranks) == users > 50
    found = evaluate_quietly(model, loaders.test, loaders.train._dataset, config)
    # RecBole rounds to four decimals.
    assert found == pytest.approx(hand_metrics(ranks, [1, 5, 20]), abs=6e-5)


def test_evaluate_with_beams_equals_exact_when_beams_hold_the_catalogue(tiny_data):
    found = []
    for values in ({"ranking": "exact"}, {"ranking": "beam", "num_beams": 40}):
        config = small_config(tiny_data, **values, **METRICS)
        model, loaders = small_model(config)
        found.append(evaluate_quietly(model, loaders.test, loaders.train._dataset, config))
    assert found[0] == found[1]


@pytest.mark.parametrize("batch_size", [64, 10_000])
def test_evaluate_equals_a_loop_over_predictions_when_sampled(batch_size, tiny_data):
    values = {"eval_args": {"mode": "uni20"}, "eval_batch_size": batch_size}
    config = small_config(tiny_data, **values, **METRICS)
    model, loaders = small_model(config)
    init_seed(1, True)  # which must not matter: the items follow from the config's seed
    found = evaluate_quietly(model, loaders.test, loaders.train._dataset, config)
    init_seed(config["seed"], True)
    ranks, total = [], 0
    for rows, user_of, positive_u, positive_i in loaders.test:
        scores = model.predict(rows)
        total += len(rows)
        for user, target in zip(positive_u.tolist(), positive_i.tolist(), strict=True):
            mine = user_of == user
            by_item = dict(zip(rows["item_id"][mine].tolist(), scores[mine].tolist(), strict=True))
            ranks.append(1 + sum(score > by_item[target] for score in by_item.values()))
    users = len(loaders.test._dataset.inter_feat)
    assert len(ranks) == users
    assert total == users * 21
    assert found == pytest.approx(hand_metrics(ranks, [1, 5, 20]), abs=6e-5)


def test_evaluate_serves_all_kinds_of_metrics_when_asked(tiny_data):
    names = ["Hit", "Precision", "MAP", "GAUC", "ItemCoverage", "AveragePopularity", "GiniIndex"]
    values = {"metrics": names, "topk": [5], "valid_metric": "Hit@5", "ranking": "exact"}
    config = small_config(tiny_data, **values)
    model, loaders = small_model(config)
    found = evaluate_quietly(model, loaders.test, loaders.train._dataset, config)
    assert set(found) == {"gauc"} | {f"{name.lower()}@5" for name in names if name != "GAUC"}
    assert all(math.isfinite(value) for value in found.values())
    assert found["precision@5"] == pytest.approx(found["hit@5"] / 5, abs=1e-4)


def test_sample_users_takes_the_same_users_when_asked_again(tiny_data):
    config = small_config(tiny_data)
    _, loaders = small_model(config)
    assert sample_users(config, loaders.valid, 0) is loaders.valid
    assert sample_users(config, loaders.valid, 10_000) is loaders.valid
    chosen = [
        sample_users(small_config(tiny_data, seed=seed), loaders.valid, 20)._dataset.inter_feat
        for seed in (1, 1, 2)
    ]
    users = [part["user_id"].tolist() for part in chosen]
    assert users[0] == users[1] != users[2]
    assert len(set(users[0])) == 20
    everyone = loaders.valid._dataset.inter_feat
    for user, target in zip(users[0], chosen[0]["item_id"].tolist(), strict=True):
        assert everyone["item_id"][everyone["user_id"] == user].tolist() == [target]
