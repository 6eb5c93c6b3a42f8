"""A phase that learns from the model's own candidates, and keeps the model of before if it must."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recbole_etegrec import load_run, run
from recbole_etegrec.data.dislikes import Dislikes
from recbole_etegrec.errors import UserError
from recbole_etegrec.preference import REWARDS, GroupMaker, Reference
from recbole_etegrec.preference.groups import last_targets
from recbole_etegrec.quick_start import check, plan
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer import ETEGRecTrainer, checkpoint
from recbole_etegrec.trainer.engine import Engine
from tests.helpers import small_config, small_data, small_model, small_values
from tests.recommender.base_models import saved

BASE = {
    "item_head": True,
    "candidates": 20,
    "epochs": 2,
    "finetune_epochs": 2,
    "eval_step": 1,
    "max_tokens": 1024,
}
PREFERS = {
    "preference_epochs": 2,
    "preference_group": 8,
    "preference_learning_rate": 1e-3,
    "preference_max_dead": 1.0,
    "preference_min_coverage": 0.0,
    "preference_min_recall": 0.0,
    "preference_max_kl": 100.0,
}
RATED = {"inter": ["user_id", "item_id", "rating", "timestamp"]}
HEAD = "recommender.item_head."


@pytest.fixture(scope="module")
def base(tiny_data, tmp_path_factory) -> Path:
    """A finished run without the phase."""
    run_dir = tmp_path_factory.mktemp("runs") / "base"
    run("ETEGRecLlama", "tiny", config_dict=small_values(tiny_data, **BASE, run_dir=str(run_dir)))
    return run_dir


def preferred(base: Path, run_dir: Path, **more) -> Path:
    """A run that begins with a finished one."""
    values = {**PREFERS, "preference_from": str(base), "run_dir": str(run_dir), **more}
    run(config_dict=values)
    return run_dir


def lines_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def weights_of(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "best" / "model.safetensors")


def result_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "result.json").read_text())


def assert_same_model(first: Path, second: Path) -> None:
    """Two runs keep the same weights and codes; a loaded tokenizer is the one of its record."""
    then, now = weights_of(first), weights_of(second)
    assert all(torch.equal(then[n], now[n]) for n in then if not n.startswith("tokenizer."))


# The phase ----------------------------------------------------------------------------------------


def test_schedule_ends_with_a_phase_that_leaves_the_item_head_alone(tiny_data, tmp_path):
    schedule = ["pretraining", "alternation", "final", "preference"]
    values = {**BASE, **PREFERS, "schedule": schedule, "run_dir": str(tmp_path / "run")}
    run("ETEGRecLlama", "tiny", config_dict=small_values(tiny_data, **values))
    before, *epochs = lines_of(tmp_path / "run")[-3:]
    assert before["phase"] == "before" and 0 < before["recall@50"] <= 1
    for line in epochs:
        assert line["phase"] == "preference" and {"recommendation", "item", "grpo"} <= line.keys()
        assert 0 <= line["dead_groups"] <= 1 and 0 <= line["kl"] <= line["kl_tail"]
        assert {"recall@1", "itemcoverage@10", "ndcg@10"} <= line["valid_result"].keys()
        assert line["norm_item_head"] == 0
    assert {"best", "config.yaml", "result.json"} <= {p.name for p in (tmp_path / "run").iterdir()}
    assert not (tmp_path / "run" / "before").exists()
    config, model, *_ = load_run(str(tmp_path / "run"))
    assert model.ranker.weight > 0


def test_item_head_and_codes_stay_while_the_decoder_learns(base, tmp_path, monkeypatch):
    kept, run_phase = {}, ETEGRecTrainer.run_phase

    def noted(self, phase):
        run_phase(self, phase)
        kept.update(checkpoint.trained_state(self.engine.model))

    monkeypatch.setattr(ETEGRecTrainer, "run_phase", noted)
    preferred(base, tmp_path / "run", weight_decay=0.1)
    then = weights_of(base)
    for name, tensor in kept.items():
        fixed = name.startswith((HEAD, "codes.", "tokenizer_of_record", "recommender.enc_adapter"))
        assert torch.equal(tensor, then[name]) or not fixed, name
    moved = "recommender.backbone.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(kept[moved], then[moved])


def test_run_begins_with_a_finished_one_and_is_used_like_any_other(base, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run_dir = preferred(base, tmp_path / "run", state="INFO", preference="dpo")
    text = caplog.text
    assert "preference: before, recall@1/5/10/50" in text and "is kept" in text
    lines = lines_of(run_dir)
    assert [line["phase"] for line in lines] == ["before", "preference", "preference"]
    assert all(0 < line["dpo"] < 5 for line in lines[1:])
    one, two = (json.loads((d / "best" / "model.json").read_text()) for d in (base, run_dir))
    assert one["codes"] == two["codes"]
    assert result_of(run_dir)["best_valid_score"] >= result_of(base)["best_valid_score"]
    _, model, dataset, *_ = load_run(str(run_dir))
    assert model.n_items == dataset.item_num


def test_bad_reward_leaves_the_model_of_before(base, tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(REWARDS, "worst", lambda proposed: -REWARDS["hit"](proposed))
    caplog.set_level(logging.INFO)
    bad = {"preference_reward": "worst", "preference_likelihood": 0.0, "preference_kl": 0.0}
    bad |= {"preference_learning_rate": 0.01, "state": "INFO"}
    run_dir = preferred(base, tmp_path / "run", **bad)
    assert_same_model(base, run_dir)
    assert result_of(run_dir)["test_result"] == result_of(base)["test_result"]
    assert "preference: the model before is kept (none was better than its" in caplog.text


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ({"preference_max_kl": 1e-9}, "kl 0.0"),
        ({"preference_max_dead": 0.0, "preference_target": False}, "dead_groups 0."),
        ({"preference_min_coverage": 1.0}, "itemcoverage@10"),
    ],
)
def test_phase_ends_when_a_limit_is_passed(limit, message, base, tmp_path, caplog, monkeypatch):
    if "preference_min_coverage" in limit:
        monkeypatch.setitem(REWARDS, "hit", lambda proposed: (proposed.items == 3).float())
        limit = {**limit, "preference_likelihood": 0.0, "preference_learning_rate": 0.05}
        limit["preference_kl"] = 0.0
    run_dir = preferred(base, tmp_path / "run", **{"preference_epochs": 4, **limit})
    assert len(lines_of(run_dir)) < 5
    assert f"preference: {message}" in caplog.text and "stopped" in caplog.text
    assert_same_model(base, run_dir)


def test_phase_is_measured_on_sampled_items_where_the_run_is(tiny_data, tmp_path):
    values = {**BASE, **PREFERS, "eval_args": {"mode": "uni20"}, "run_dir": str(tmp_path / "run")}
    values |= {"schedule": ["pretraining", "preference"], "preference_epochs": 1}
    values |= {"item_head": False, "preference_learning_rate": 0.01}
    run("ETEGRecLlama", "tiny", config_dict=small_values(tiny_data, **values))
    codes, before, line = lines_of(tmp_path / "run")[-3:]
    assert (codes["phase"], before["phase"], line["phase"]) == ("codes", "before", "preference")
    assert line["valid_result"]["ndcg@10"] > before["ndcg@10"]
    assert result_of(tmp_path / "run")["best_valid_score"] > 0


def test_control_learns_the_likelihood_alone(base, tmp_path):
    run_dir = preferred(base, tmp_path / "run", preference="likelihood")
    lines = lines_of(run_dir)[1:]
    assert all("recommendation" in line and "grpo" not in line for line in lines)
    assert all("kl" not in line for line in lines)


def test_phase_learns_with_adapters_on_a_pretrained_base(tiny_data, tmp_path):
    values = {**BASE, **PREFERS, "schedule": ["pretraining", "alternation", "preference"]}
    values |= {"tuning": "lora", "lora_r": 4, "base_model": saved(tmp_path)}
    values |= {"projector_init": "matched", "heads_learning_rate": 0.01, "learning_rate": 1e-3}
    values |= {"preference_temperature": 1.0, "gradient_checkpointing": True}
    values |= {"gradient_accumulation_steps": 2, "run_dir": str(tmp_path / "run")}
    run("ETEGRecLlama", "tiny", config_dict=small_values(tiny_data, **values))
    lines = lines_of(tmp_path / "run")
    assert [line["phase"] for line in lines[-2:]] == ["preference"] * 2
    assert all(line["norm_lora"] > 0 and line["kl"] > 0 for line in lines[-2:])


# Groups -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tiny_data):
    """A model, a micro-batch, and what draws its groups."""

    def made(**more):
        config = small_config(tiny_data, **{**BASE, **PREFERS, **more})
        model, loaders = small_model(config)
        state = {name: p.detach().clone() for name, p in model.recommender.named_parameters()}
        return (
            model,
            next(iter(loaders.train))[0],
            GroupMaker(config, model, Reference(model.recommender, state)),
        )

    return made


def test_group_is_of_the_last_target_of_each_row_and_holds_it(made):
    _, batch, maker = made()
    width = batch.items.shape[1] - 1
    found = maker(batch, 0.0, seed=1)
    for row, after in enumerate(found.group.after.tolist()):
        places = batch.target_index[batch.target_index // width == row] % width
        assert after == int(places.max()) + 1
        assert int(batch.items[row, after]) in found.group.items[row].tolist()
        assert len(set(found.group.items[row].tolist())) == 8
    assert found.group.real.all() and found.group.each_step == batch.rows_a_step


def test_group_leaves_the_history_out_when_rankings_do(made):
    for exclude in (False, True):
        _, batch, maker = made(exclude_history=exclude)
        targets, group = last_targets(batch), maker(batch, 0.0, seed=1).group
        seen = [
            set(history) & set(items) - {int(target)}
            for history, items, target in zip(
                targets.history.tolist(), group.items.tolist(), targets.target, strict=True
            )
        ]
        assert any(one - {0} for one in seen) != exclude


def test_row_without_a_target_does_not_count(made):
    _, batch, maker = made()
    width = batch.items.shape[1] - 1
    kept = batch.target_index // width != 0
    part = batch._replace(target_index=batch.target_index[kept], targets=batch.targets[kept])
    group = maker(part, 0.0, seed=1).group
    assert group.real.tolist() == [False] + [True] * (len(batch.items) - 1)


def test_reference_stays_while_the_model_moves(made):
    model, batch, maker = made()
    before = maker(batch, 0.0, seed=1).group
    weight = model.recommender.code_embedding.output_projector.weight
    with torch.no_grad():
        weight *= 1.5
    moved = weight.detach().clone()
    after = maker(batch, 0.0, seed=1).group
    assert torch.equal(weight, moved)
    known = {item: n for n, item in enumerate(before.items[0].tolist())}
    both = [(known[i], n) for n, i in enumerate(after.items[0].tolist()) if i in known]
    assert both
    for one, other in both:
        torch.testing.assert_close(before.reference[0, one], after.reference[0, other])


def test_likelihood_rises_when_it_is_the_reward(made, monkeypatch):
    monkeypatch.setitem(REWARDS, "likelihood", lambda proposed: proposed.log_probs.sum(dim=2))
    model, batch, maker = made(preference_reward="likelihood", preference_target=False)
    optimizer = torch.optim.SGD(model.recommender.parameters(), lr=0.05)

    def mass() -> float:
        """The log-probability of the most probable candidate, on average."""
        targets = last_targets(batch)
        history = maker._encode(targets)
        proposed = maker._propose(history, targets, None, 1)
        return float(proposed.log_probs.sum(dim=2)[:, 0].mean())

    with torch.no_grad():
        first = mass()
    for step in range(10):
        loss = model.losses({"grpo"}, maker(batch, 0.0, seed=step))["grpo"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert mass() > first + 0.1


# Ratings ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rated(tmp_path_factory) -> str:
    """Interactions with ratings from 1 to 5: item ``i`` gets ``1 + i % 5`` from everybody."""
    folder = tmp_path_factory.mktemp("rated") / "rated"
    folder.mkdir()
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(30):
        for time in range(8 + user % 3):
            item = (3 * user + time) % 20
            lines.append(f"u{user}\ti{item}\t{1 + item % 5}\t{time}")
    (folder / "rated.inter").write_text("\n".join(lines) + "\n")
    return str(folder.parent)


def test_users_low_ratings_are_told_target_first_where_it_is_one(rated):
    config = small_config(rated, "rated", load_col=RATED)
    dataset, loaders = small_data(config)
    train = loaders.train._dataset
    dislikes = Dislikes(train, "rating", 2, 3)
    ids = train.inter_feat["item_id"].numpy()
    tokens = dataset.id2token("item_id", ids)
    low = [int(token[1:]) % 5 <= 1 for token in tokens]
    for place in range(len(ids)):
        found = dislikes(torch.tensor([place]).numpy(), 1)[0]
        user = train.inter_feat["user_id"] == train.inter_feat["user_id"][place]
        own = {ids[n] for n in range(len(ids)) if user[n] and low[n]}
        assert set(found) - {0} <= own and len(set(found)) >= min(len(own), 3) - 1
        assert (found[0] == ids[place]) == low[place] or ids[place] in own


def test_dpo_learns_from_low_ratings(rated, tmp_path):
    schedule = ["pretraining", "alternation", "preference"]
    values = {**BASE, **PREFERS, "schedule": schedule, "run_dir": str(tmp_path / "run")}
    values |= {"preference": "dpo", "preference_disliked": 2, "load_col": RATED}
    run("ETEGRecLlama", "rated", config_dict=small_values(rated, **values))
    assert lines_of(tmp_path / "run")[-1]["dpo"] > 0


# Refusals and forecasts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"schedule": ["preference"]}, "needs a trained model: name a finished run"),
        ({"schedule": ["preference", "final"]}, "must end with preference"),
        ({"preference": "grop"}, "must be one of grpo, dpo, likelihood; did you mean 'grpo'"),
        ({"preference_reward": "hits"}, "did you mean 'hit'"),
        ({"preference_reward": "item_head", "item_head": False}, "train with item_head: True"),
        ({"preference_hardest": 4}, "must be below code_length"),
        ({"preference_disliked": 2}, "is for preference \\(dpo\\)"),
        ({"preference": "likelihood", "preference_likelihood": 0}, "has nothing to learn"),
        ({"preference_from": "nowhere"}, "no config.yaml; is it the directory of a run"),
        ({"preference": "dpo", "preference_disliked": 2}, "has no field 'rating'"),
    ],
)
def test_phase_is_refused_in_one_line(values, message, tiny_data, tmp_path):
    schedule = ["pretraining", "alternation", "final", "preference"]
    values = {**BASE, "schedule": schedule, "run_dir": str(tmp_path / "run"), **values}
    with pytest.raises(UserError, match=message) as caught:
        run("ETEGRecLlama", "tiny", config_dict=small_values(tiny_data, **values))
    assert "\n" not in str(caught.value)


def test_run_of_other_data_or_unfinished_is_refused(base, rated, tmp_path):
    with pytest.raises(UserError, match="has changed since the run"):
        copy = Path(shutil.copytree(base, tmp_path / "base"))
        (tmp_path / "data" / "tiny").mkdir(parents=True)
        lines = (Path(rated) / "rated" / "rated.inter").read_text()
        (tmp_path / "data" / "tiny" / "tiny.inter").write_text(lines)
        preferred(copy, tmp_path / "other", data_path=str(tmp_path / "data"))
    with pytest.raises(UserError, match="dataset \\(other\\): the run in .* has tiny"):
        preferred(base, tmp_path / "run", dataset="other")
    with pytest.raises(UserError, match="ends with another: leave one of them out"):
        preferred(base, tmp_path / "run", schedule=["pretraining", "final"])
    (copy / "result.json").unlink()
    with pytest.raises(UserError, match="must be a finished run"):
        preferred(copy, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preference", ["grpo", "dpo"])
def test_check_and_plan_know_the_phase(preference, tiny_data):
    schedule = ["pretraining", "alternation", "final", "preference"]
    values = small_values(
        tiny_data, **BASE, **PREFERS, schedule=schedule, preference=preference, warm_epochs=0
    )
    report = check("ETEGRecLlama", "tiny", config_dict=values)
    assert report.ok, report.problems
    assert report.losses["preference"].keys() == {"recommendation", "item", preference}
    with_it = plan("ETEGRecLlama", "tiny", config_dict=values)
    without = plan("ETEGRecLlama", "tiny", config_dict={**values, "schedule": schedule[:-1]})
    assert with_it.training.total > without.training.total


def test_resumed_phase_goes_on_as_if_it_had_not_been_stopped(base, tmp_path, monkeypatch):
    unbroken = preferred(base, tmp_path / "unbroken", save_steps=1)
    step, calls = Engine.step, []

    def broken(self, *arguments):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return step(self, *arguments)

    for stop in (2, 7):
        calls.clear()
        run_dir = tmp_path / f"stopped{stop}"
        monkeypatch.setattr(Engine, "step", broken)
        with pytest.raises(KeyboardInterrupt):
            preferred(base, run_dir, save_steps=1)
        monkeypatch.setattr(Engine, "step", step)
        assert RunDirectory(run_dir).before.is_dir()
        run(config_dict={"resume": str(run_dir)})
        for one, two in zip(lines_of(unbroken), lines_of(run_dir), strict=True):
            one.pop("seconds", None), two.pop("seconds", None)
            assert one == two
        assert_same_model(unbroken, run_dir)
