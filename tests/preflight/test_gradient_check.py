"""What `--plan` and `--check` say, on models that are right and on models that are broken."""

import pytest
import torch

from recbole_etegrec import quick_start
from recbole_etegrec.cli import main
from recbole_etegrec.preflight import gradient_check
from recbole_etegrec.preflight.gradient_check import check_gradients
from tests.helpers import small_config, small_model, small_values
from tests.recommender.base_models import saved

LORA = {"tuning": "lora", "lora_r": 4, "lora_dropout": 0.0}


def checked(data_path: str, **more):
    config = small_config(data_path, **{"warm_epochs": 0, **more})
    model, loaders = small_model(config)
    return check_gradients(config, model, loaders.train)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("codebook_update", ["shared", "tokenizer_only"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_check_finds_nothing_wrong_when_all_learns(codebook_update, checkpointing, tiny_data):
    report = checked(
        tiny_data, codebook_update=codebook_update, gradient_checkpointing=checkpointing
    )
    assert report.ok, report.problems
    cells = report.cells
    assert cells["encoder"]["tokenizer"] != "-" and cells["encoder"]["recommender"] == "-"
    assert cells["decoder, language model"]["final"] != "-"
    assert cells["SIA adapter"]["recommender"] != "-" and cells["SIA adapter"]["final"] == "-"
    moves = cells["codebook 0, recommender's"]["recommender"] != "-"
    assert moves == (codebook_update == "shared")
    assert report.losses["final"].keys() == {"recommendation"}
    assert "OK" in str(report)


@pytest.mark.parametrize("sample", [10, 1000])
def test_check_looks_at_the_item_head_when_there_is_one(sample, tiny_data):
    report = checked(tiny_data, item_head=True, item_sample=sample, projector_init="matched")
    assert report.ok, report.problems
    assert report.losses["final"].keys() == {"recommendation", "item"}
    for name in ("item query", "item projector", "item entry", "free vectors"):
        cells = report.cells[name]
        assert cells["tokenizer"] == "-" and "-" not in (cells["recommender"], cells["final"])


def test_check_leaves_alignment_out_when_the_run_never_comes_to_it(tiny_data):
    report = checked(tiny_data, epochs=2)
    assert report.ok, report.problems
    assert report.losses["tokenizer"].keys() == {"quantization"}
    assert report.losses["recommender"].keys() == {"recommendation", "sia", "psa"}
    assert report.cells["SIA adapter"]["final"] == "-"
    report = checked(tiny_data, schedule=["pretraining", "alternation", "polish"], epochs=3)
    assert report.ok, report.problems
    assert report.losses["tokenizer"].keys() == {"sia", "psa", "quantization"}
    assert report.losses["polish"].keys() == report.losses["recommender"].keys()


def test_check_looks_at_both_modules_when_they_learn_in_the_same_steps(tiny_data):
    report = checked(tiny_data, schedule=["joint", "final"], epochs=2)
    assert report.ok, report.problems
    assert report.stages == ["tokenizer", "recommender", "final"]


@pytest.mark.parametrize("projector_init", ["normal", "matched"])
def test_check_finds_nothing_wrong_when_an_encoder_and_a_decoder_learn(projector_init, tiny_data):
    report = checked(tiny_data, model="ETEGRec", projector_init=projector_init)
    assert report.ok, report.problems
    for name in ("encoder, language model", "decoder, language model", "start and distances"):
        cells = report.cells[name]
        assert cells["tokenizer"] == "-" and "-" not in (cells["recommender"], cells["polish"])
    assert ("codes enter the decoder at 1 " in report.scale[0]) == (projector_init == "matched")


def test_check_leaves_alternation_out_when_there_is_none(tiny_data):
    report = checked(tiny_data, model="TIGER", epochs=0)
    assert report.ok, report.problems
    assert report.stages == ["pretraining", "final"]
    assert report.cells["encoder"]["final"] == "-" != report.cells["encoder"]["pretraining"]


def test_check_advises_when_settings_are_those_of_a_decoder_from_scratch(llama, tiny_data):
    report = checked(tiny_data, base_model=llama, **LORA)
    assert any("learning_rate (0.002)" in line for line in report.advice)
    assert any("projector_init (normal)" in line for line in report.advice)
    better = {"learning_rate": 1e-3, "finetune_learning_rate": 1e-3, "projector_init": "matched"}
    assert not checked(tiny_data, base_model=llama, **LORA, **better).advice


def test_check_finds_nothing_wrong_when_adapters_train(llama, tiny_data):
    report = checked(tiny_data, base_model=llama, **LORA, projector_init="matched")
    assert report.ok, report.problems
    assert report.cells["decoder, LoRA"]["recommender"] != "-"
    assert set(report.cells["decoder, frozen"].values()) == {"-"}


def test_check_finds_nothing_wrong_when_the_tokenizer_has_no_encoder(tiny_data):
    report = checked(tiny_data, tokenizer="rqkmeans", collision="sinkhorn")
    assert report.ok, report.problems
    assert report.stages == ["tokenizer", "recommender", "final"]
    assert not report.cells.keys() & {"encoder", "decoder"}
    assert report.cells["codebook 2"]["tokenizer"] != "-"


def test_check_shows_what_gets_no_gradient_when_a_loss_does_not_reach_it(tiny_data, monkeypatch):
    original = gradient_check.Engine.losses

    def losses(self, batch, stage):
        found = original(self, batch, stage)
        return {name: loss * 0 if name == "sia" else loss for name, loss in found.items()}

    monkeypatch.setattr(gradient_check.Engine, "losses", losses)
    report = checked(tiny_data)
    assert not report.ok
    assert report.problems == ["SIA adapter: a gradient of 0 in the recommender stage"]
    assert report.cells["SIA adapter"]["recommender"] == "ZERO"


def test_check_shows_what_is_detached_when_a_module_gets_no_gradient(tiny_data):
    config = small_config(tiny_data)
    model, loaders = small_model(config)
    embedding = model.recommender.code_embedding
    embedding.scid_projector.register_forward_hook(lambda *args: args[-1].detach())
    report = check_gradients(config, model, loaders.train)
    assert report.cells["input projector"]["final"] == "MISSING"
    assert "input projector: no gradient in the final stage" in report.problems


def test_check_shows_what_moved_when_it_is_fixed(llama, tiny_data, monkeypatch):
    config = small_config(tiny_data, base_model=llama, **LORA)
    model, loaders = small_model(config)
    frozen = next(p for n, p in model.recommender.backbone.named_parameters() if "lora" not in n)
    step = gradient_check.Engine.step

    def disturbed(self, batches, stage):
        result = step(self, batches, stage)
        with torch.no_grad():
            frozen.view(-1)[0] += 1e-3
            self.model.tokenizer.decoder[0].bias += 1e-3
        return result

    monkeypatch.setattr(gradient_check.Engine, "step", disturbed)
    report = check_gradients(config, model, loaders.train)
    assert report.cells["decoder, frozen"]["final"] == "MOVED"
    assert "decoder, frozen: its weights have changed" in report.problems
    assert report.cells["decoder"]["final"] == "MOVED"
    assert report.cells["encoder"]["final"] == "-"


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        ({"init_std": 0.9}, "too sharp"),
        ({"init_std": 1e-4}, "the same logit for all codes"),
        ({"init_std": 1e-4, "projector_init": "matched"}, None),
    ],
)
def test_check_names_the_knob_when_the_first_logits_are_off(values, advice, tiny_data):
    report = checked(tiny_data, **values)
    if advice is None:
        assert not report.advice
    else:
        assert advice in report.advice[0] and "projector_init" in report.advice[0]


# From the command line ----------------------------------------------------------------------------


def arguments(data_path: str, **more) -> list[str]:
    values = {"dataset": "tiny", **small_values(data_path), **more}
    return [f"--{key}={value}" for key, value in values.items()]


def test_main_prints_plan_and_check_when_asked_and_leaves_no_run(tiny_data, capsys, tmp_path):
    run_dir = tmp_path / "run"
    assert main(["--plan", "--check", *arguments(tiny_data, run_dir=run_dir)]) == 0
    output = capsys.readouterr().out
    assert "training, at its peak" in output and "gradient norms" in output
    assert not run_dir.exists()


def test_main_ends_with_1_when_something_does_not_learn(tiny_data, capsys, monkeypatch):
    monkeypatch.setattr(gradient_check, "_judge", lambda *_: ("ZERO", "a gradient of 0"))
    assert main(["--check", *arguments(tiny_data)]) == 1
    captured = capsys.readouterr()
    assert "PROBLEM: encoder: a gradient of 0 in the pretraining stage" in captured.out
    assert captured.err.startswith("error: ") and "problems" in captured.err


@pytest.mark.slow
def test_main_ends_with_2_and_a_knob_when_a_run_does_not_fit(tiny_data, capsys, tmp_path):
    values = arguments(tiny_data, memory_gib=0.001, run_dir=tmp_path / "run")
    assert main(["--plan", *values]) == 2
    captured = capsys.readouterr()
    assert "memory there is" in captured.out
    assert captured.err.startswith("error: memory_gib (0.0) is too little for training")
    assert main(values) == 2  # a run is refused before it trains
    assert "too little for training" in capsys.readouterr().err


def test_main_refuses_to_look_when_the_model_is_recboles(tiny_data, capsys):
    assert main(["--plan", "--model=BPR", "--dataset=tiny", f"--data_path={tiny_data}"]) == 2
    assert "only ETEGRecLlama, ETEGRec, TIGER can be looked at so" in capsys.readouterr().err


def test_run_logs_its_plan_when_it_starts(tiny_data, tmp_path):
    values = small_values(tiny_data, run_dir=str(tmp_path / "run"), state="INFO")
    quick_start.run("ETEGRecLlama", "tiny", config_dict=values)
    assert "training, at its peak" in (tmp_path / "run" / "run.log").read_text()
