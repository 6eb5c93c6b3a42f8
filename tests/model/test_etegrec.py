"""The published systems: what their defaults make of them, and that they train and rank alike."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from accelerate.utils import compare_versions, is_torch_version
from recbole.data.dataloader import TrainDataLoader
from recbole.data.dataset import SequentialDataset

from recbole_etegrec.config import Config
from recbole_etegrec.errors import Interrupted, UserError
from recbole_etegrec.evaluation.evaluate import evaluate
from recbole_etegrec.losses import OBJECTIVES
from recbole_etegrec.model.build import recommender_spec
from recbole_etegrec.quick_start import run
from recbole_etegrec.recommender import empty_recommender
from recbole_etegrec.runs.checks import check_rules
from recbole_etegrec.runs.load import load_run
from recbole_etegrec.trainer.engine import Engine
from tests.helpers import micro_batches_of, small_config, small_model, small_values, whole_steps

CLOSE = {"atol": 1e-5, "rtol": 0}
MODELS = ("ETEGRec", "TIGER")


# Defaults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_config_gives_the_published_backbone_when_the_model_is_published(model):
    config = Config(model, "ml-100k", config_dict={"code_num": 256})
    spec = recommender_spec(config, 256, 128)
    backbone = empty_recommender(spec, keep_buffers=False).backbone
    for stack in (backbone.encoder, backbone.decoder):
        assert len(stack.block) == 6
        attention, mlp = stack.block[0].layer[0].SelfAttention, stack.block[5].layer[-1]
        assert attention.q.weight.shape == (4 * 64, 128)
        assert mlp.DenseReluDense.wi.weight.shape == (512, 128)
        assert isinstance(mlp.DenseReluDense.act, torch.nn.ReLU)
        assert mlp.dropout.p == 0.1
    assert config["weight_decay"] == 0.05


def test_config_takes_what_a_model_leaves_open_from_the_one_it_is_derived_from():
    llama, etegrec, tiger = (Config(m, "ml-100k") for m in ("ETEGRecLlama", *MODELS))
    for key in ("code_num", "num_beams", "cooccurrence_window", "exclude_history"):
        assert etegrec[key] == llama[key], key
    assert tiger["cooccurrence_window"] == llama["cooccurrence_window"] == 50
    assert (etegrec["backbone"], tiger["backbone"]) == ("t5", "t5")
    assert tiger["schedule"] == ["pretraining", "final"]
    assert (tiger["sia_weight"], tiger["psa_weight"]) == (0, 0)
    assert etegrec["schedule"] == ["pretraining", "alternation", "polish"]
    for data in ("ml-100k", "Beauty"):
        etegrec, tiger = (Config(m, data) for m in MODELS)
        alternation = etegrec["epochs"] - etegrec["epochs"] // etegrec["cycle_epochs"]
        assert tiger["finetune_epochs"] == alternation + etegrec["finetune_epochs"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_model": "org/model"}, "base_model (org/model) is a decoder, and backbone (t5)"),
        ({"tuning": "lora"}, "tuning (lora) needs a base_model"),
        ({"training_rows": "sequences"}, "training_rows (sequences) must be prefixes"),
        ({"training_rows": "users"}, "training_rows (users) must be one of sequences, prefixes"),
        ({"alignment_pooling": "last"}, "alignment_pooling (last) must be mean"),
        ({"head_size": 0}, "head_size (0) must be a whole number from 1"),
        ({"backbone": "llama", "head_size": 7}, "head_size (7) must be even"),
    ],
)
def test_config_refuses_when_a_value_does_not_fit_an_encoder(values, message):
    with pytest.raises(UserError) as refusal:
        check_rules(Config("ETEGRec", "ml-100k", config_dict=values))
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.skipif(
    not (is_torch_version(">=", "2.7") and compare_versions("accelerate", ">=", "1.13")),
    reason="older ones are refused before",
)
def test_config_refuses_when_an_encoder_would_be_sharded(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UserError, match=r"\(FSDP\) is for backbones that do not fit one GPU"):
        check_rules(Config("TIGER", "ml-100k"))


def test_config_takes_prefixes_and_a_head_size_when_the_backbone_is_a_llama(tiny_data):
    config = small_config(tiny_data, training_rows="prefixes", head_size=6)
    model, loaders = small_model(config)
    assert model.recommender.backbone.layers[0].self_attn.q_proj.weight.shape == (12, 16)
    rows = sum(len(batch.items) for batch in whole_steps(loaders.train))
    assert rows == sum(len(batch.targets) for batch in whole_steps(loaders.train))


# The model --------------------------------------------------------------------------------------


def test_calculate_loss_equals_the_loss_of_windows_when_given_recboles_prefix_rows(tiny_data):
    # One batch each, for the negatives of PSA are those of the batch.
    values = {"max_tokens": 1_000_000, "train_batch_size": 10_000}
    values |= {"MAX_ITEM_LIST_LENGTH": 12, "sia_weight": 0.3, "psa_weight": 0.2}
    config = small_config(tiny_data, model="ETEGRec", **values)
    model, loaders = small_model(config)
    train = SequentialDataset(config).build()[0]
    (rows,), (batch,) = TrainDataLoader(config, train, None), whole_steps(loaders.train)
    assert len(rows) == len(batch.targets) == len(batch.items)
    with torch.no_grad():
        losses = model.losses(OBJECTIVES, batch)
        expected = losses["recommendation"] + 0.3 * losses["sia"] + 0.2 * losses["psa"]
        found = model.calculate_loss(rows)
    assert losses["sia"] > 0.01 and losses["psa"] > 0.1
    torch.testing.assert_close(found, expected, **CLOSE)


def test_losses_of_micro_batches_sum_to_those_of_the_step_when_it_is_split(tiny_data):
    model, loaders = small_model(small_config(tiny_data, model="ETEGRec", max_tokens=4000))
    names = ["recommendation", "sia", "quantization"]  # PSA's negatives are those of a process
    (ranks,) = micro_batches_of(loaders.train, 3, 1)
    with torch.no_grad():
        for whole, micro_batches in zip(whole_steps(loaders.train), ranks, strict=True):
            shares = [model.losses(names, batch) for batch in micro_batches]
            found = {name: sum(share[name] for share in shares) for name in names}
            torch.testing.assert_close(found, model.losses(names, whole), atol=1e-5, rtol=1e-5)


def test_losses_give_every_parameter_a_finite_gradient_when_a_micro_batch_has_no_targets(tiny_data):
    model, loaders = small_model(small_config(tiny_data, model="ETEGRec", max_tokens=40))
    loaders.train.split(40)
    empty = next(batch for step in loaders.train for batch in step if not len(batch.targets))
    sum(model.losses(OBJECTIVES, empty).values()).backward()
    for name, parameter in model.recommender.named_parameters():
        assert parameter.grad is not None and not parameter.grad.any(), name


@pytest.mark.parametrize("what", ["recommendation", "aligned"])
def test_losses_reach_every_parameter_they_should_when_differentiated(what, tiny_data):
    model, loaders = small_model(small_config(tiny_data, model="ETEGRec"))
    losses = model.losses(OBJECTIVES, whole_steps(loaders.train)[0])
    aligned = losses["sia"] + losses["psa"] if what == "aligned" else 0
    (losses["recommendation"] + aligned).backward()
    for name, parameter in model.recommender.named_parameters():
        has = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert has == (what == "aligned" or "_adapter" not in name), name


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("ranking", ["beam", "exact"])
def test_scores_agree_when_predicted_recommended_and_ranked(ranking, attention, tiny_data):
    values = {"ranking": ranking, "num_beams": 40, "attn_implementation": attention}
    model, loaders = small_model(small_config(tiny_data, model="ETEGRec", **values))
    (rows,) = [interaction for interaction, *_ in loaders.test]
    full, target = model.full_sort_predict(rows), rows["item_id"]
    predicted = model.predict(rows)
    torch.testing.assert_close(predicted, full.gather(1, target.unsqueeze(1)).squeeze(1), **CLOSE)
    ranked = model.ranker.best(rows, 40)
    torch.testing.assert_close(ranked.scores, full.gather(1, ranked.items), **CLOSE)
    assert torch.equal(ranked.items.sort(dim=1).values, torch.arange(1, 41).expand(len(rows), -1))
    with torch.no_grad():
        for n, (history, length) in enumerate(
            zip(rows["item_id_list"], rows["item_length"], strict=True)
        ):
            sequence = torch.cat([history[:length], target[n : n + 1]])[None]
            logits = model.recommender(model.codes(sequence), length[None] - 1).logits
            log_probs = logits.log_softmax(-1)[0]
            total = sum(log_probs[j, code] for j, code in enumerate(model.codes(target[n])))
            torch.testing.assert_close(predicted[n], total, **CLOSE)


# Runs -------------------------------------------------------------------------------------------

VALUES = {
    "epochs": 2,
    "warm_epochs": 0,
    "finetune_epochs": 2,
    "eval_step": 1,
    "max_tokens": 4000,
    "step_targets": 100,
    "dropout": 0.2,
    "residual_dropout": 0.1,
    "sia_weight": 0.01,
    "psa_weight": 0.01,
    "alternation_tokenizer_learning_rate": 0.005,
    "use_gpu": False,
}


def values_of(model: str, data_path: str, run_dir: Path, **more) -> dict:
    values = {**VALUES, "MAX_ITEM_LIST_LENGTH": 10, "run_dir": str(run_dir), **more}
    if model == "TIGER":
        values |= {"epochs": 0, "sia_weight": 0.0, "psa_weight": 0.0}
    return small_values(data_path, **values)


def lines_of(run_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: v for key, v in line.items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module", params=MODELS)
def finished(request, tiny_data, tmp_path_factory) -> tuple[str, dict, Path]:
    """A model, the outcome of its run, and the directory of that."""
    run_dir = tmp_path_factory.mktemp("run") / request.param
    values = values_of(request.param, tiny_data, run_dir)
    return request.param, run(request.param, "tiny", config_dict=values), run_dir


def test_run_goes_through_the_stages_of_its_model_when_it_trains(finished):
    model, outcome, run_dir = finished
    stages = [(line["phase"], line.get("trains")) for line in lines_of(run_dir)]
    alternation = [("alternation", "tokenizer"), ("alternation", "recommender")]
    assert stages == [
        *[("pretraining", "tokenizer")] * 2,
        ("codes", None),
        *(alternation if model == "ETEGRec" else []),
        *[("polish" if model == "ETEGRec" else "final", "recommender")] * 2,
    ]
    assert outcome["test_result"]["recall@20"] > 0
    first, last = lines_of(run_dir)[-2:]
    assert last["recommendation"] < first["recommendation"]


def test_load_run_gives_the_test_metrics_when_evaluated_again(finished):
    name, outcome, run_dir = finished
    config, model, _, train_data, valid_data, test_data = load_run(str(run_dir))
    assert type(model).__name__ == config["model"] == name
    for loader, result in ((test_data, "test_result"), (valid_data, "best_valid_result")):
        assert evaluate(model, loader, train_data._dataset, config) == outcome[result]


def test_run_gives_the_unbroken_outcome_when_it_was_stopped(finished, tiny_data, tmp_path):
    name, unbroken, whole = finished
    values = values_of(name, tiny_data, tmp_path / "run", save_steps=1)
    step, calls = Engine.step, 0

    def stopped(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Engine, "step", stopped)
        run(name, "tiny", config_dict=values)
    outcome = run(config_dict={"resume": str(tmp_path / "run")})
    for key in ("best_valid_result", "test_result"):
        assert outcome[key] == unbroken[key]
    assert lines_of(tmp_path / "run") == lines_of(whole)
    weights = "best/model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (whole / weights).read_bytes()


def test_tiger_leaves_the_tokenizer_and_codes_as_pretrained_when_it_trains(tiny_data, tmp_path):
    pretrained = values_of("TIGER", tiny_data, tmp_path / "pretrained", finetune_epochs=0)
    trained = values_of("TIGER", tiny_data, tmp_path / "trained", weight_decay=0.0)
    models = []
    for values in (pretrained, trained):
        run("TIGER", "tiny", config_dict=values)
        models.append(load_run(values["run_dir"])[1])
    first, second = models
    assert first.codes.digest() == second.codes.digest()
    for name, value in first.tokenizer.state_dict().items():
        assert torch.equal(value, second.tokenizer.state_dict()[name]), name
    for name, value in first.recommender.named_parameters():
        learned = not torch.equal(value, second.recommender.get_parameter(name))
        assert learned == ("_adapter" not in name), name


def test_run_trains_and_ranks_when_precision_is_bf16(tiny_data, tmp_path):
    values = values_of("ETEGRec", tiny_data, tmp_path / "run", precision="bf16")
    values |= {"projector_init": "matched", "gradient_checkpointing": True}
    assert run("ETEGRec", "tiny", config_dict=values)["test_result"]["recall@20"] > 0
    assert all(line.get("skipped", 0) == 0 for line in lines_of(tmp_path / "run"))
