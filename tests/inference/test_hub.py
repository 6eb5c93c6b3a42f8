"""Exported models as the ecosystem of Hugging Face reads them: the hub's, and a plain LLaMA."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from recbole_etegrec import ETEGRecModel, export_run, load_exported, load_run, recommend, run
from recbole_etegrec.cli import main
from recbole_etegrec.errors import UserError
from recbole_etegrec.inference.code_logits import (
    CodeLogits,
    for_sglang,
    for_transformers,
    for_vllm,
    generate_items,
)
from tests.helpers import small_values
from tests.recommender.base_models import saved

HISTORIES = [["i3"], ["i5", "i6", "i7", "i1"], ["i30", "i2"] * 8]


def trained(data: str, run_dir: Path, model: str = "ETEGRecLlama", **more) -> str:
    values = {"epochs": 0, "finetune_epochs": 2, "run_dir": str(run_dir), **more}
    run(model, "tiny", config_dict=small_values(data, **values))
    return str(run_dir)


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory) -> str:
    """A run whose items enter at their last code."""
    return trained(tiny_data, tmp_path_factory.mktemp("run") / "first", item_head=True)


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "model"
    export_run(finished, str(out))
    return out


@pytest.fixture(scope="module")
def plain(finished, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "plain"
    assert main(["export", finished, "--out", str(out), "--format", "hf"]) == 0
    return out


def assert_generates_as_beams(run_dir: str, out: Path) -> None:
    """Whether 20 beams of `generate` find the items and scores of ``ranking: beam``."""
    values = {"ranking": "beam", "num_beams": 20, "repeat_score": 0.0}
    _, model, dataset, *_ = load_run(run_dir, values)
    language_model = AutoModelForCausalLM.from_pretrained(out)
    assert type(language_model).__name__.endswith("ForCausalLM")
    expected = recommend(model, dataset, HISTORIES, 20, exclude_history=False)
    found = generate_items(language_model, CodeLogits.of(out), HISTORIES, 20)
    for own, theirs in zip(expected, found, strict=True):
        assert [r.item for r in own] == [item for item, _ in theirs]
        scores = torch.tensor([r.log_probability for r in own])
        torch.testing.assert_close(scores, torch.tensor([s for _, s in theirs]), atol=1e-4, rtol=0)


def test_generate_finds_what_beams_find_when_items_enter(finished, plain):
    assert_generates_as_beams(finished, plain)
    assert json.loads((plain / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["codes alone", "adapters"])
def test_generate_finds_what_beams_find(kind, tiny_data, tmp_path):
    more = {"item_head": False}
    if kind == "adapters":
        more |= {"base_model": saved(tmp_path / "base"), "tuning": "lora", "lora_r": 4}
    run_dir = trained(tiny_data, tmp_path / "run", **more)
    export_run(run_dir, str(tmp_path / "out"), form="hf")
    assert_generates_as_beams(run_dir, tmp_path / "out")


def test_exported_file_works_where_the_package_is_not(plain):
    spec = importlib.util.spec_from_file_location("code_logits", plain / "code_logits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert "recbole" not in (plain / "code_logits.py").read_text().replace("recbole-etegrec", "")
    model = LlamaForCausalLM.from_pretrained(plain)
    ((best, _), *_), *_ = module.generate_items(model, module.CodeLogits.of(plain), [["i3"]], 5)
    assert best in module.CodeLogits.of(plain).number


def test_tokenizer_reads_the_words_of_a_prompt(plain):
    codes = CodeLogits.of(plain)
    tokenizer = AutoTokenizer.from_pretrained(plain)
    prompt = codes.prompt(["i3", "i7"])
    words = tokenizer.convert_ids_to_tokens(prompt)
    assert words[0].startswith("<c0_") and words[codes.length - 1].startswith("<item_")
    assert tokenizer(" ".join(words))["input_ids"] == prompt
    with pytest.raises(KeyError):
        codes.prompt(["nothing"])


def test_adapters_keep_to_children_and_normalise_within_the_level():
    codes = CodeLogits([None, [0, 1], [0, 2], [2, 0]], 3, ["", "a", "b", "c"], False)
    logits = torch.arange(7.0)[None]  # padding, 3 codes of level 0, 3 of level 1
    first = codes(torch.empty(1, 0, dtype=torch.long), logits)[0]
    own = torch.tensor([1.0, 2.0, 3.0]).log_softmax(0)
    inf = -torch.inf
    expected = torch.tensor([inf, own[0], inf, own[2], inf, inf, inf])
    torch.testing.assert_close(first, expected)
    second = codes(torch.tensor([[1]]), logits)[0]  # after code 0
    own = torch.tensor([4.0, 5.0, 6.0]).log_softmax(0)
    expected = torch.tensor([inf, inf, inf, inf, inf, own[1], own[2]])
    torch.testing.assert_close(second, expected)
    assert codes(torch.tensor([[2]]), logits).isneginf().all()  # no item begins with code 1

    class Request:
        output_ids = [1]

    ids = torch.tensor([[6, 4, 1]])
    torch.testing.assert_close(for_transformers(codes, 2)(ids, logits)[0], second)
    torch.testing.assert_close(for_vllm(codes)([1], logits[0]), second)
    torch.testing.assert_close(for_vllm(codes)([], logits[0]), first)
    torch.testing.assert_close(for_sglang(codes)(logits, [{"__req__": Request}])[0], second)


def test_from_pretrained_reads_an_export_and_save_pretrained_writes_it(exported, tmp_path):
    model = ETEGRecModel.from_pretrained(exported)
    expected = recommend(*load_exported(exported), HISTORIES, 5)
    assert model.recommend(HISTORIES, 5) == expected
    model.save_pretrained(tmp_path / "copy")
    again = ETEGRecModel.from_pretrained(str(tmp_path / "copy"))
    assert again.recommend(HISTORIES, 5) == expected
    names = sorted(path.name for path in exported.iterdir())
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == names


def test_push_to_hub_sends_the_files_of_the_export(exported, monkeypatch):
    sent = {}

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path, **_):
            sent[repo_id] = sorted(path.name for path in Path(folder_path).iterdir())

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    ETEGRecModel.from_pretrained(exported).push_to_hub("me/mine")
    assert sent == {"me/mine": sorted(path.name for path in exported.iterdir())}


def test_from_pretrained_says_in_a_line_that_there_is_no_such_model(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"model \(me/mine\)") as error:
        ETEGRecModel.from_pretrained("me/mine", local_files_only=True)
    assert "\n" not in str(error.value)


def test_export_is_refused_when_the_format_or_the_model_has_none(finished, tmp_path, capsys):
    assert main(["export", finished, f"--out={tmp_path}/x", "--format=onnx"]) == 2
    assert "format (onnx): must be one of own, hf" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_recommend_takes_an_exported_model(exported, capsys):
    assert main(["recommend", str(exported), "--history", "i3,i4", "--k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    expected = recommend(*load_exported(exported), [["i3", "i4"]], 3)[0]
    assert [line.split()[1] for line in lines[1:]] == [one.item for one in expected]
    assert main(["recommend", str(exported), "--all"]) == 2
    assert "knows no users" in capsys.readouterr().err
