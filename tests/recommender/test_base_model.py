"""Pretrained decoders: found, loaded, adapted, never changed, never saved."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from recbole.utils import init_seed
from safetensors.torch import load_file
from torch import nn
from transformers import AttentionInterface

from recbole_etegrec import export_run, recommend
from recbole_etegrec.config import Config
from recbole_etegrec.decoding import ExactScores, beam_search
from recbole_etegrec.errors import UserError
from recbole_etegrec.evaluation.evaluate import evaluate
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.model.build import check_base_model
from recbole_etegrec.quick_start import run
from recbole_etegrec.recommender.base_model import (
    find_base_config,
    load_base_model,
    load_text_tokenizer,
)
from recbole_etegrec.runs.checks import check_rules
from recbole_etegrec.runs.load import load_run
from recbole_etegrec.serve.command import _load as load_served
from recbole_etegrec.trainer import checkpoint
from tests.helpers import small_config, small_model, small_values
from tests.recommender.base_models import DECODERS, saved, smollm2


def needs(package: str) -> pytest.MarkDecorator:
    """A mark for what cannot be tried without an optional package."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"there is no {package}")


LORA = {"tuning": "lora", "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> str:
    return saved(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def finished(llama, tiny_data, tmp_path_factory) -> tuple[dict, Path]:
    """The outcome of a LoRA run with all stages, and its directory."""
    run_dir = tmp_path_factory.mktemp("run") / "lora"
    values = {**LORA, "base_model": llama, "warm_epochs": 0, "projector_init": "matched"}
    values |= {"learning_rate": 0.01, "finetune_learning_rate": 0.01, "finetune_epochs": 4}
    return run_tiny(tiny_data, run_dir, **values), run_dir


def run_tiny(data_path: str, run_dir: Path, **more) -> dict:
    return run("ETEGRecLlama", "tiny", config_dict=small_values(data_path, run_dir=run_dir, **more))


def base_weights(model: ETEGRecLlama) -> dict[str, torch.Tensor]:
    """The weights of a pretrained decoder, by their names in its own files."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tensor
        for name, tensor in model.recommender.backbone.state_dict().items()
        if "lora_" not in name
    }


# Architectures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
def test_beam_ranks_as_the_exact_ranking_when_the_decoder_is_pretrained(name, tiny_data, tmp_path):
    config = small_config(tiny_data, base_model=saved(tmp_path, name), tuning="frozen")
    model, loaders = small_model(config)
    rows = loaders.test._dataset[torch.arange(20)]
    history = model.ranker.encode(rows)
    exact = ExactScores(model.recommender, model.codes.trie)(history)
    ranking = beam_search(model.recommender, model.codes.trie, history, num_beams=40)
    assert (ranking.items == exact.topk(40).indices).all()
    torch.testing.assert_close(ranking.scores, exact.topk(40).values, atol=1e-5, rtol=1e-5)
    assert ranking.scores.std(dim=0).max() > 0.01  # histories matter


def test_decoder_has_the_weights_of_the_directory_when_loaded(llama, tiny_data):
    stored = load_file(Path(llama) / "model.safetensors")
    for tuning in ("full", "frozen", "lora"):
        values = LORA if tuning == "lora" else {"tuning": tuning}
        model, _ = small_model(small_config(tiny_data, base_model=llama, **values))
        own = base_weights(model)
        assert own.keys() == stored.keys() - {"embed_tokens.weight"}
        assert all(torch.equal(own[name], stored[name]) for name in own)
        trains = {n for n, p in model.recommender.backbone.named_parameters() if p.requires_grad}
        kinds = {"full": "", "frozen": None, "lora": "lora_"}
        assert bool(trains) == (tuning != "frozen")
        assert all(kinds[tuning] in name for name in trains)


@pytest.mark.parametrize(
    ("precision", "tuning", "dtype"),
    [
        ("fp32", "lora", torch.float32),
        ("bf16", "lora", torch.bfloat16),
        ("bf16", "frozen", torch.bfloat16),
        ("bf16", "full", torch.float32),
    ],
)
def test_weights_are_as_precise_as_they_need_to_be_when_loaded(
    precision, tuning, dtype, llama, tiny_data
):
    values = {"base_model": llama, "precision": precision, "tuning": tuning}
    model, loaders = small_model(small_config(tiny_data, **values))
    assert {tensor.dtype for tensor in base_weights(model).values()} == {dtype}
    trains = [p for p in model.recommender.parameters() if p.requires_grad]
    assert {parameter.dtype for parameter in trains} == {torch.float32}
    rows = loaders.test._dataset[torch.arange(5)]
    assert model.ranker.best(rows, 10).scores.isfinite().all()  # without autocast, too


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert", {}, "does not give a token the same state|does not take embeddings"),
        ("t5", {}, "t5 is not decoder-only"),
        ("llama", {"max_position_embeddings": 100}, "204 tokens.*100.*max_position_embeddings"),
        ("mistral", {"sliding_window": 64}, "204 tokens.*64.*sliding_window"),
    ],
)
def test_decoder_is_refused_when_its_architecture_does_not_fit(
    name, changes, message, tiny_data, tmp_path
):
    config = small_config(tiny_data, base_model=saved(tmp_path, name, **changes))
    with pytest.raises(UserError, match=message):
        check_base_model(config)
        small_model(config)


# What cannot be had -------------------------------------------------------------------------------


def test_base_model_is_refused_in_one_line_when_it_is_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    for base, message in {
        f"{tmp_path}/none": "no such directory",
        f"{tmp_path}/none.gguf": "no such file",
        "./none": "no such directory",
        "none/": "no such directory",
        f"{tmp_path}/empty": "the directory holds no config.json",
        f"{tmp_path}/broken": "not a valid JSON file|Expecting property name",
    }.items():
        with pytest.raises(UserError, match=rf"^base_model \({base}\): .*({message})") as raised:
            find_base_config(base)
        assert "\n" not in str(raised.value)


def test_base_model_is_refused_when_its_weights_are_missing(tmp_path):
    folder = Path(saved(tmp_path))
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"^base_model .*no file named model.safetensors"):
        load_base_model(
            str(folder),
            dtype=torch.float32,
            attn_implementation="sdpa",
            quantized=False,
            device="cpu",
        )


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hugging Face hub does for a gated and for an unknown model."""

    def do_HEAD(self):  # noqa: N802
        gated = "/gated/" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("X-Error-Message", "no")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "offline", "message"),
    [
        ("gated/model", "0", "the model is gated: accept its terms at"),
        ("unknown/model", "0", "no such model on the hub"),
        ("some/model", "1", "the hub cannot be reached: give a directory"),
    ],
)
def test_base_model_is_refused_in_one_line_when_the_hub_refuses_it(
    base, offline, message, tmp_path
):
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_OFFLINE": offline,
        "HF_HOME": str(tmp_path),
        "NO_PROXY": "127.0.0.1",
    }
    ended = subprocess.run(
        [sys.executable, "run_recbole.py", f"--base_model={base}", f"--run_dir={tmp_path}/run"],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    server.shutdown()
    assert ended.returncode == 2, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: base_model ({base}): ")
    assert message in line
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


def test_tokenizer_that_is_not_here_is_refused_with_a_command_that_fetches_it(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="some/model, its tokenizer.*`hf download some/model` wh"):
        load_text_tokenizer("some/model")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning": "lora"}, r"tuning \(lora\) needs a base_model"),
        ({"tuning": "frozen"}, r"tuning \(frozen\) needs a base_model"),
        ({"tuning": "prefix"}, r"tuning \(prefix\) must be one of full, lora, qlora, frozen"),
        ({"base_model": 7}, r"base_model \(7\) must be a hub id"),
        pytest.param(
            {"base_model": "x.gguf", "tuning": "qlora"}, "cannot quantize", marks=needs("gguf")
        ),
        pytest.param({"optimizer": "paged_adamw_8bit"}, "needs a GPU", marks=needs("bitsandbytes")),
        ({"attn_implementation": "flash_attention_2"}, "needs a GPU and the package flash-attn"),
        ({"lora_target_modules": "q_proj"}, "must be a list of names of linear layers"),
        ({"lora_r": 0}, r"lora_r \(0\) must be a whole number from 1"),
        ({"heads_learning_rate": -1}, r"heads_learning_rate \(-1\) must be a number above 0"),
        ({"memory_gib": 0}, r"memory_gib \(0\) must be a number, 0.001"),
    ],
)
def test_config_is_refused_when_its_keys_contradict_each_other(changes, message, tiny_data):
    with pytest.raises(UserError, match=message):
        check_rules(small_config(tiny_data, **changes))


def test_config_names_the_package_when_one_is_missing(tiny_data, monkeypatch):
    for package in ("bitsandbytes", "gguf"):
        monkeypatch.setitem(sys.modules, package, None)  # cannot be imported
    for changes, package in (
        ({"optimizer": "adamw_8bit"}, "bitsandbytes"),
        ({"base_model": "x", "tuning": "qlora"}, "bitsandbytes"),
        ({"base_model": "x.gguf"}, "gguf"),
    ):
        with pytest.raises(UserError, match=f"needs the package {package}: pip install {package}"):
            check_rules(small_config(tiny_data, **changes))


def test_lora_names_the_layers_there_are_when_its_targets_are_not(llama, tiny_data):
    values = {**LORA, "base_model": llama, "lora_target_modules": ["query"]}
    with pytest.raises(UserError, match=r"lora_target_modules \(query\).*down_proj.*q_proj"):
        small_model(small_config(tiny_data, **values))


# Training -----------------------------------------------------------------------------------------


def test_run_learns_and_leaves_the_base_as_it_was_when_adapters_train(finished, llama):
    outcome, run_dir = finished
    config, model, *_ = load_run(str(run_dir))
    stored = load_file(Path(llama) / "model.safetensors")
    assert all(torch.equal(t, stored[name]) for name, t in base_weights(model).items())
    adapters = {n: p for n, p in model.recommender.backbone.named_parameters() if "lora_B" in n}
    assert len(adapters) == 2 * 4 and all(p.abs().max() > 0 for p in adapters.values())
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    trained = [line["recommendation"] for line in lines if "recommendation" in line]
    assert trained[-1] < trained[0] - 0.3
    assert all(line["norm_lora"] > 0 for line in lines if line.get("trains") == "recommender")


def test_checkpoint_holds_no_frozen_weight_when_adapters_train(finished):
    _, run_dir = finished
    kept = load_file(run_dir / "best" / "model.safetensors")
    decoder = {name for name in kept if name.startswith("recommender.backbone.")}
    assert decoder and all("lora_" in name for name in decoder)
    assert {"recommender.code_embedding.codebooks", "codes.table"} <= kept.keys()


def test_load_run_gives_the_metrics_of_the_run_when_adapters_were_trained(finished):
    outcome, run_dir = finished
    config, model, _, train_data, valid_data, test_data = load_run(str(run_dir))
    for data, expected in (
        (valid_data, outcome["best_valid_result"]),
        (test_data, outcome["test_result"]),
    ):
        assert evaluate(model, data, train_data._dataset, config) == expected


def test_load_run_is_refused_when_the_base_has_other_weights(finished, tiny_data, tmp_path):
    _, run_dir = finished
    other = saved(tmp_path, "llama", rms_norm_eps=1e-5, initializer_range=0.2)
    with pytest.raises(UserError, match="base_model: its weights .* are not those"):
        load_run(str(run_dir), {"base_model": other})


def test_merged_adapters_recommend_the_same_when_folded_into_the_base(finished):
    _, run_dir = finished
    _, model, _, _, _, test_data = load_run(str(run_dir))
    rows = test_data._dataset[torch.arange(len(test_data._dataset.inter_feat))]
    before = model.ranker.best(rows, 10)
    assert model.merge_adapters()
    assert not [name for name, _ in model.named_parameters() if "lora_" in name]
    after = model.ranker.best(rows, 10)
    assert torch.equal(before.items, after.items)
    torch.testing.assert_close(before.scores, after.scores, atol=1e-4, rtol=1e-4)


def test_merged_adapters_score_nearly_the_same_when_weights_are_bf16(finished):
    _, run_dir = finished
    _, model, _, _, _, test_data = load_run(str(run_dir), {"precision": "fp32"})
    model.recommender.backbone.get_base_model().to(torch.bfloat16)
    model.recommender.residual_dtype = torch.bfloat16
    rows = test_data._dataset[torch.arange(len(test_data._dataset.inter_feat))]
    before = model.ranker.score(rows, rows["item_id"].unsqueeze(1))
    model.merge_adapters()
    after = model.ranker.score(rows, rows["item_id"].unsqueeze(1))
    torch.testing.assert_close(before, after, atol=0.3, rtol=0)
    assert not torch.equal(before, after)


def test_served_run_has_its_adapters_merged(finished):
    _, run_dir = finished
    _, model, dataset, *_ = load_run(str(run_dir))
    served = load_served(str(run_dir), {})
    assert isinstance(model.recommender.backbone, PeftModel)
    assert not isinstance(served.model.recommender.backbone, PeftModel)
    for own, theirs in zip(
        recommend(model, dataset, [["i1", "i2"]], 10)[0],
        recommend(served.model, served.catalogue, [["i1", "i2"]], 10)[0],
        strict=True,
    ):
        assert own.item == theirs.item
        assert own.log_probability == pytest.approx(theirs.log_probability, abs=1e-4)


def test_nothing_is_merged_when_there_are_no_adapters(tiny_data):
    model, _ = small_model(small_config(tiny_data))
    backbone = model.recommender.backbone
    assert not model.merge_adapters() and model.recommender.backbone is backbone


@pytest.mark.parametrize(("autocast", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_adapter_reads_its_input_as_it_is_when_autocast_would_cast_it_back(
    autocast, dtype, llama, tiny_data
):
    values = {**LORA, "base_model": llama, "precision": "bf16"}
    model, loaders = small_model(small_config(tiny_data, **values))
    layers = [m for m in model.recommender.backbone.modules() if hasattr(m, "lora_A")]
    seen = set()
    for layer in layers:
        torch.nn.init.normal_(layer.lora_B["default"].weight)  # which starts as zeros
        layer.lora_dropout["default"].register_forward_pre_hook(
            lambda _, inputs: seen.add(inputs[0].dtype)
        )
    batch = next(iter(loaders.train))[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model.losses(("recommendation",), batch)["recommendation"]
        assert seen == {dtype}
        for layer in layers:
            del layer._cast_input_dtype  # for peft's own
        assert model.losses(("recommendation",), batch)["recommendation"] == loss
    assert seen == {torch.float32, dtype}


def test_checkpointing_changes_no_gradient_when_adapters_train(llama, tiny_data):
    gradients = []
    for checkpointing in (False, True):
        values = {**LORA, "base_model": llama, "gradient_checkpointing": checkpointing}
        config = small_config(tiny_data, **values, dropout=0.1)
        model, loaders = small_model(config)
        model.recommender.train()
        torch.manual_seed(0)
        losses = model.losses(("recommendation", "sia", "psa"), next(iter(loaders.train))[0])
        sum(losses.values()).backward()
        trains = {n: p.grad for n, p in model.recommender.named_parameters() if p.requires_grad}
        assert all(gradient is not None for gradient in trains.values())
        gradients.append(trains)
        assert {n for n, p in model.recommender.named_parameters() if not p.requires_grad}
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


def test_ranking_is_the_same_when_attention_cannot_take_a_mask_for_each_token(tiny_data):
    model, loaders = small_model(small_config(tiny_data))
    rows = loaders.test._dataset[torch.arange(20)]
    expected = model.ranker.best(rows, 10)

    def causal_alone(module, query, key, value, attention_mask, **options):
        """Like the flash kernels: no mask but the causal one and padding."""
        assert attention_mask is None or attention_mask.ndim == 2
        attend = AttentionInterface()["sdpa"]
        return attend(module, query, key, value, None, is_causal=True, **options)

    AttentionInterface.register("causal_alone", causal_alone)
    model.recommender.backbone.config._attn_implementation = "causal_alone"
    ranking = model.ranker.best(rows, 10)
    assert model.recommender.backbone.config._attn_implementation == "causal_alone"
    longest = rows["item_length"] == rows["item_length"].max()
    assert torch.equal(ranking.items[longest], expected.items[longest])


def test_decoder_is_loaded_when_its_attention_cannot_take_a_mask_for_each_token(llama):
    def causal_alone(module, query, key, value, attention_mask, **options):
        raise AssertionError("as the flash kernels, which need a GPU")

    AttentionInterface.register("gpu_alone", causal_alone)
    model, _ = load_base_model(
        llama, dtype=torch.float32, attn_implementation="gpu_alone", quantized=False, device="cpu"
    )
    assert model.config._attn_implementation == "gpu_alone"


def test_residual_dropout_is_refused_when_layers_have_other_parts(tiny_data, tmp_path):
    base = saved(tmp_path, "gpt2")
    with pytest.raises(UserError, match=r"residual_dropout \(0.1\): .*GPT2Model.*set it to 0"):
        small_model(small_config(tiny_data, base_model=base, residual_dropout=0.1))
    model, loaders = small_model(small_config(tiny_data, base_model=base))
    assert model.ranker.best(loaders.test._dataset[torch.arange(5)], 10).scores.isfinite().all()


def test_projectors_match_the_decoder_when_scaled_to_it(llama, tiny_data):
    model, loaders = small_model(small_config(tiny_data, base_model=llama, init_std=0.02))
    batch = next(iter(loaders.train))[0]
    codes = model.codes(batch.items)
    model.recommender.match_scale(codes, batch.target_index)
    embedding = model.recommender.code_embedding
    tokens = embedding.embed(codes[codes.any(dim=2)])
    table = load_file(Path(llama) / "model.safetensors")["embed_tokens.weight"]
    scales = [float(x.detach().square().mean().sqrt()) for x in (tokens, table)]
    assert scales[0] == pytest.approx(scales[1], rel=1e-4)
    logits = model.recommender(codes, batch.target_index).logits
    spread = (logits - logits.mean(dim=-1, keepdim=True)).square().mean()
    assert float(spread.detach()) == pytest.approx(1, rel=1e-3)


def test_heads_learn_at_their_own_rate_when_one_is_given(tiny_data, tmp_path, llama):
    values = {**LORA, "base_model": llama, "epochs": 0, "finetune_epochs": 1, "warmup_steps": 0}
    moved = []
    for rate in (None, 1e-9):
        init_seed(1, True)
        run_dir = tmp_path / str(rate)
        run_tiny(tiny_data, run_dir, **values, learning_rate=0.01, heads_learning_rate=rate)
        state = load_file(run_dir / "best" / "model.safetensors")
        lora = [t for name, t in state.items() if "lora_B" in name]
        moved.append((state["recommender.code_embedding.scid_projector.weight"], lora))
    assert not torch.allclose(moved[0][0], moved[1][0], atol=1e-4)
    assert all(t.abs().max() > 1e-4 for _, lora in moved for t in lora)


# bitsandbytes -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_run_learns_when_the_base_is_quantized(tiny_data, tmp_path):
    pytest.importorskip("bitsandbytes")
    # Blocks of 64 weights share a scale, so layers are a little wider here.
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
    values = {**LORA, "tuning": "qlora", "base_model": saved(tmp_path, "llama", **wide)}
    outcome = run_tiny(tiny_data, tmp_path / "run", **values, learning_rate=0.01)
    config, model, _, train_data, _, test_data = load_run(outcome["run_dir"])
    kinds = {type(m).__name__ for m in model.recommender.backbone.modules()}
    assert "Linear4bit" in kinds
    assert not model.merge_adapters()
    with pytest.raises(UserError, match="tuning .qlora.: its adapters cannot be merged"):
        export_run(outcome["run_dir"], str(tmp_path / "out"))
    assert evaluate(model, test_data, train_data._dataset, config) == outcome["test_result"]
    kept = load_file(tmp_path / "run" / "best" / "model.safetensors")
    assert all("lora_" in n for n in kept if n.startswith("recommender.backbone."))


def test_8bit_states_go_on_as_they_were_when_restored(tiny_data, tmp_path):
    pytest.importorskip("bitsandbytes")
    from recbole_etegrec.trainer.optimizers import make_optimizer

    def step(module, optimizer, seed):
        torch.manual_seed(seed)
        module(torch.randn(8, 128)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 4))
    module.item_head = None
    optimizer = make_optimizer("adamw_8bit", module, 0.1)
    step(module, optimizer, 1)
    state = checkpoint.optimizer_state({"recommender": optimizer})
    assert torch.uint8 in {tensor.dtype for tensor in state.values()}
    twin = nn.Sequential(nn.Linear(128, 128), nn.Linear(128, 4))
    twin.load_state_dict(module.state_dict())
    twin.item_head = None
    other = make_optimizer("adamw_8bit", twin, 0.1)
    checkpoint.restore_optimizers({"recommender": other}, state)
    for seed in (2, 3):
        step(module, optimizer, seed)
        step(twin, other, seed)
    for one, two in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, two)


# Real weights -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_learns_on_real_data_and_comes_back_when_loaded(tmp_path):
    values = {
        "base_model": smollm2(),
        "user_inter_num_interval": "[20,20]",
        "run_dir": str(tmp_path / "run"),
        "embedding_cache": str(tmp_path / "cache"),
        "tokenizer_epochs": 50,
        "epochs": 0,
        "finetune_epochs": 3,
        "eval_step": 1,
        "max_tokens": 512,
        "warmup_steps": 1,
        "show_progress": False,
        "state": "WARNING",
        "use_gpu": False,
    }
    outcome = run("ETEGRecLlama", "ml-100k", ["smollm2_135m"], values)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    trained = [line for line in map(json.loads, lines) if line["phase"] == "final"]
    assert trained[-1]["recommendation"] < trained[0]["recommendation"] - 0.5
    best = tmp_path / "run" / "best" / "model.safetensors"
    assert best.stat().st_size < 40e6  # none of the base: it alone has 135 M numbers
    assert all(
        "lora_" in name for name in load_file(best) if name.startswith("recommender.backbone.")
    )
    config, model, _, train_data, _, test_data = load_run(str(tmp_path / "run"))
    assert evaluate(model, test_data, train_data._dataset, config) == outcome["test_result"]


def test_overlay_is_found_by_name_when_no_such_file_is_here(tiny_data, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("llama2_7b_rtx5090", "properties/llama2_7b_rtx5090.yaml"):
        config = Config("ETEGRecLlama", "tiny", [name], {"data_path": tiny_data})
        assert (config["base_model"], config["lora_r"]) == ("meta-llama/Llama-2-7b-hf", 64)


def test_small_overlay_changes_no_default_when_given_alone(tiny_data):
    plain, small = (
        Config("ETEGRecLlama", "tiny", files, {"data_path": tiny_data}) for files in ([], ["small"])
    )
    assert small.inputs == plain.inputs


@pytest.mark.parametrize("known", [False, True])
def test_code_of_a_base_model_is_not_run(known, llama, tmp_path):
    folder, mark = shutil.copytree(llama, tmp_path / "model"), tmp_path / "executed"
    (folder / "evil.py").write_text(
        f"import os\nos.mkdir({str(mark)!r})\n"
        "from transformers import LlamaConfig as C, LlamaModel as M\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.C", "AutoModel": "evil.M"}
    config["model_type"] = "llama" if known else "nobody-knows-this"
    (folder / "config.json").write_text(json.dumps(config))
    find_base_config.cache_clear()
    options = {"attn_implementation": "sdpa", "quantized": False, "device": "cpu"}
    if known:
        load_base_model(str(folder), dtype=torch.float32, **options)
    else:
        with pytest.raises(UserError, match="base_model"):
            find_base_config(str(folder))
    assert not mark.exists()
