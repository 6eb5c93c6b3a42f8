"""Stages, early stopping, pretraining and evaluation, on a real small model."""

import json
import math
from dataclasses import replace

import pytest
import torch
from recbole.utils import init_seed
from safetensors.torch import load_file

from recbole_etegrec.errors import UserError
from recbole_etegrec.evaluation.evaluate import evaluate, sample_users
from recbole_etegrec.losses import OBJECTIVES
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.trainer.checkpoint import load_model
from recbole_etegrec.trainer.schedule import Stage
from tests.helpers import (
    changed_since,
    parameters_of,
    small_config,
    small_model,
    whole_steps,
)
from tests.trainer.trainers import (
    BOOKS,
    METRICS,
    NO_STAGES,
    RECOMMENDATION,
    WEIGHTS,
    make_trainer,
    metrics_lines,
    of_module,
    ready_trainer,
    run_stages,
)

# The loop ---------------------------------------------------------------------------------------


def test_trainer_sees_every_target_in_fresh_batches_when_epochs_pass(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run", max_tokens=600)
    epochs = []
    for epoch in range(2):
        trainer.loaders["sequences"].draw(epoch)
        epochs.append([batch.items for batch in whole_steps(trainer.loaders["sequences"])])
    assert [items.tolist() for items in epochs[0]] != [items.tolist() for items in epochs[1]]
    stage = Stage("final", "recommender", RECOMMENDATION)
    run_stages(trainer, stage, stage)
    train = trainer.loaders["sequences"]._dataset.inter_feat
    targets = len(train) - len(train["user_id"].unique())
    assert [line["targets"] for line in metrics_lines(trainer)] == [targets, targets]
    tokens = [sum(4 * int((items > 0).sum()) for items in epoch) for epoch in epochs]
    assert [line["tokens"] for line in metrics_lines(trainer)] == tokens
    assert [line["skipped"] for line in metrics_lines(trainer)] == [0, 0]


def test_trainer_counts_no_tokens_when_no_decoder_reads_them(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run")
    alone = Stage("alternation", "tokenizer", {"quantization": 1.0})
    run_stages(trainer, alone, replace(alone, weights={"sia": 0.1, "quantization": 1.0}))
    tokens = [line["tokens"] for line in metrics_lines(trainer)]
    assert tokens[0] == 0 < tokens[1]


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("aligned", [False, True])
def test_trainer_records_the_means_of_weighted_losses_when_nothing_moves(
    aligned, micro_batches, tiny_data, tmp_path
):
    values = {"max_tokens": 600, "gradient_accumulation_steps": micro_batches}
    trainer = ready_trainer(tiny_data, tmp_path / "run", **values)
    weights = WEIGHTS["recommender"] if aligned else RECOMMENDATION
    stage = Stage("alternation", "recommender", weights)
    run_stages(trainer, stage, rate=0.0)
    (record,) = metrics_lines(trainer)
    total, targets = dict.fromkeys(stage.weights, 0.0), 0
    with torch.no_grad():
        for step in trainer.loaders["sequences"]:
            assert len(step) == micro_batches
            targets += step[0].step_targets
            for batch in step:
                for name, share in trainer.engine.losses(batch, stage).items():
                    total[name] += share.item() * batch.divisor
    assert record["targets"] == targets
    assert {name for name in OBJECTIVES if name in record} == set(total)
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
    stage = Stage("alternation", "recommender", WEIGHTS["recommender"])
    run_stages(trainer, *[stage] * 6)
    first, *_, last = metrics_lines(trainer)
    assert all(last[name] < first[name] for name in ("recommendation", "sia", "psa"))
    trainer = ready_trainer(tiny_data, tmp_path / "other")
    run_stages(
        trainer,
        *[Stage("alternation", "tokenizer", WEIGHTS["tokenizer"])] * 6,
    )
    first, *_, last = metrics_lines(trainer)
    assert all(last[name] < first[name] for name in ("quantization", "sia", "psa"))


def test_trainer_keeps_the_best_model_when_later_ones_are_worse(tiny_data, tmp_path):
    trainer = ready_trainer(tiny_data, tmp_path / "run", valid_users=0, clip_grad_norm=None)
    good = Stage("final", "recommender", RECOMMENDATION, evaluate=True)
    # Ascending the loss makes a model worse, whatever the noise.
    bad = Stage("final", "recommender", {"recommendation": -1.0}, evaluate=True)
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
    assert phases == ["pretraining", "alternation", "alternation", "final", "final"]
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
    stage = Stage("final", "recommender", RECOMMENDATION, evaluate=True)
    quiet = Stage("final", "recommender", RECOMMENDATION)
    run_stages(trainer, quiet, *[stage] * 10)
    # RecBole's: more than stopping_step in a row
    assert trainer.progress.epochs_done == 1 + patience + 1
    assert trainer.keeper.best_state is None


def test_trainer_takes_the_lower_score_when_the_metric_is_better_small(tiny_data, tmp_path):
    values = {"metrics": ["NDCG", "AveragePopularity"], "valid_metric": "AveragePopularity@10"}
    trainer = ready_trainer(tiny_data, tmp_path / "run", **values)
    assert trainer.best_valid_score == float("inf")
    run_stages(trainer, *[Stage("final", "recommender", RECOMMENDATION, evaluate=True)] * 3)
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
    ("course", "expected"),
    [("constant", [0.5, 1.0, 1.0, 1.0]), ("cosine", [0.5, 1.0, 0.5, 0.0])],
)
def test_trainer_warms_up_over_a_share_of_its_steps_when_it_is_below_one(
    course, expected, tiny_data, tmp_path
):
    # Without cuts, an epoch has as many steps as any other.
    values = {"warmup_steps": 0.5, "max_tokens": 600, "cut_probability": 0.0}
    trainer = ready_trainer(tiny_data, tmp_path / "run", **values)
    assert len(trainer.loaders["sequences"]) > 3
    stage = Stage("final", "recommender", RECOMMENDATION)
    run_stages(trainer, *[stage] * 4, rate=0.01, course=course)
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


def test_load_model_gives_the_tokenizer_that_gave_the_codes_when_codebooks_moved_on(
    tiny_data, tmp_path
):
    values = {"finetune_epochs": 0, "learning_rate": 0.05, "eval_step": 1}
    trainer, loaders = make_trainer(tiny_data, tmp_path / "run", **values)
    trainer.fit(loaders.train, loaders.valid)
    model = trainer.model
    codes, items = model.codes.table[1:, :-1], model.item_embedding[1:]
    moved = model.tokenizer.quantizer.codebooks.clone()
    assert torch.equal(moved, model.recommender.code_embedding.codebooks)
    assert not torch.equal(model.tokenizer.encode(items), codes)
    load_model(model, trainer.run_dir.best)
    assert torch.equal(model.tokenizer.encode(items), codes)
    assert torch.equal(moved, model.recommender.code_embedding.codebooks)  # as it was trained


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
        return (output.embedding - output.reconstruction).square().mean().item()


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


def test_pretraining_follows_from_the_seed_when_it_runs(tiny_data, tmp_path):
    """Whatever random numbers have been drawn before."""
    values = {**NO_STAGES, "tokenizer_epochs": 2, "tokenizer_batch_size": 16}
    tokenizers, records = [], []
    for run, seed in enumerate((5, 5, 6)):
        trainer, loaders = make_trainer(tiny_data, tmp_path / f"{run}", seed=5, **values)
        trainer.config["seed"] = seed
        torch.manual_seed(run)
        trainer.fit(loaders.train)
        tokenizers.append(trainer.model.tokenizer)
        records.append([line["quantization"] for line in metrics_lines(trainer)])
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


@pytest.mark.parametrize("batch_size", [3, 10_000])
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
    first_batch = next(iter(loaders.test))[1]
    assert len(first_batch.unique()) == min(batch_size, users)  # of users, not of rows
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
