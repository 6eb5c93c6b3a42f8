"""A trained model as a directory of its own: the same recommendations, with nothing else."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from recbole_etegrec import export_run, load_exported, load_run, recommend, run
from recbole_etegrec.cli import main
from recbole_etegrec.errors import UserError
from recbole_etegrec.inference import Catalogue
from recbole_etegrec.runs.added_items import AddedItems, write_added_items
from recbole_etegrec.storage.digests import write_checksums
from recbole_etegrec.storage.run_directory import RunDirectory
from tests.helpers import small_values
from tests.recommender.base_models import DECODERS, saved

FILES = ["README.md", "checksums.json", "config.json", "items.json", "model.safetensors"]
HISTORIES = [["i3"], ["i5", "i6", "i7", "i1"], ["i30", "i2"] * 40]


def trained(data: str, run_dir: Path, model: str = "ETEGRecLlama", **more) -> str:
    """The directory of a run in which little is trained, but all of it was."""
    values = {"epochs": 0, "finetune_epochs": 2, "run_dir": str(run_dir), **more}
    run(model, "tiny", config_dict=small_values(data, **values))
    return str(run_dir)


def write_titles(data: str) -> None:
    lines = [f"i{n}\tItem «{n}»" for n in range(0, 40, 2)]
    text = "\n".join(["item_id:token\ttitle:token_seq", *lines]) + "\n"
    Path(data, "tiny", "tiny.item").write_text(text)


@pytest.fixture(scope="module")
def data(tiny_data, tmp_path_factory) -> str:
    """A data_path of its own with `tiny`, every second item with a title."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(Path(tiny_data, "tiny"), folder / "tiny")
    write_titles(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> str:
    return trained(data, tmp_path_factory.mktemp("run") / "first")


@pytest.fixture(scope="module")
def exported(finished, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "model"
    assert "model.safetensors" in export_run(finished, str(out))
    return out


def assert_recommends_as(run_dir: str, out: Path, **more) -> None:
    """Whether items, titles and scores are the same as those of the run's own model."""
    _, model, dataset, *_ = load_run(run_dir)
    expected = recommend(model, dataset, HISTORIES, 20, **more)
    found = recommend(*load_exported(out), HISTORIES, 20, **more)
    for own, theirs in zip(expected, found, strict=True):
        assert [r[:2] for r in own] == [r[:2] for r in theirs]
        scores = [torch.tensor([r.log_probability for r in rows]) for rows in (own, theirs)]
        torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-6)


MODELS = {
    "llama": {},
    "exact": {"ranking": "exact", "code_length": 3, "alignment_pooling": "mean"},
    "rqkmeans": {"tokenizer": "rqkmeans", "collision": "sinkhorn"},
    "ETEGRec": {"model": "ETEGRec"},
    "TIGER": {"model": "TIGER"},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_exported_model_recommends_as_the_run_when_nothing_else_is_there(kind, data, tmp_path):
    run_dir = trained(data, tmp_path / "run", **MODELS[kind])
    export_run(run_dir, str(tmp_path / "out"))
    assert_recommends_as(run_dir, tmp_path / "out", exclude_history=True)


@pytest.mark.parametrize(
    ("name", "tuning"), [*((name, "lora") for name in DECODERS), ("llama", "frozen")]
)
def test_exported_model_needs_no_base_model_when_it_had_one(name, tuning, data, tmp_path):
    base = saved(tmp_path / "base", name)
    values = {"base_model": base, "tuning": tuning, "lora_r": 4, "finetune_learning_rate": 0.01}
    values["item_head"] = name == "llama"
    run_dir = trained(data, tmp_path / "run", **values)
    export_run(run_dir, str(tmp_path / "out"))
    assert_recommends_as(run_dir, tmp_path / "out")
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()
    shutil.rmtree(base)
    model, _ = load_exported(tmp_path / "out")
    assert not any("lora" in key for key in model.state_dict())


def test_exported_model_has_the_types_of_the_run_when_the_base_is_bf16(data, tmp_path):
    values = {"base_model": saved(tmp_path / "base"), "tuning": "frozen", "precision": "bf16"}
    run_dir = trained(data, tmp_path / "run", **values)
    export_run(run_dir, str(tmp_path / "out"))
    model, _ = load_exported(tmp_path / "out")
    types = {p.dtype for p in model.recommender.backbone.parameters()}
    assert types == {model.recommender.residual_dtype} == {torch.bfloat16}
    assert model.recommender.code_embedding.codebooks.dtype == torch.float32
    assert_recommends_as(run_dir, tmp_path / "out")


def test_export_needs_neither_dataset_nor_run_when_it_is_loaded(data, finished, tmp_path):
    shutil.copytree(Path(data, "tiny"), tmp_path / "data" / "tiny")
    run_dir = shutil.copytree(finished, tmp_path / "run")
    values = {"data_path": str(tmp_path / "data")}
    export_run(str(run_dir), str(tmp_path / "out"), values)
    expected = recommend(*load_exported(tmp_path / "out"), HISTORIES, 5)
    shutil.rmtree(tmp_path / "data")
    shutil.rmtree(run_dir)
    moved = shutil.move(tmp_path / "out", tmp_path / "elsewhere")
    assert recommend(*load_exported(moved, "cpu"), HISTORIES, 5) == expected
    config = (moved / "config.json").read_text() + (moved / "README.md").read_text()
    assert str(tmp_path) not in config and data not in config


def test_export_holds_tokens_titles_and_a_card(data, finished, exported, capsys, tmp_path):
    assert sorted(path.name for path in exported.iterdir()) == FILES
    _, catalogue = load_exported(exported)
    dataset = load_run(finished)[2]
    expected = Catalogue.from_dataset(dataset)
    assert (catalogue.tokens, catalogue.titles) == (expected.tokens, expected.titles)
    assert sum(title is not None for title in catalogue.titles) == 20
    card = (exported / "README.md").read_text()
    result = json.loads(Path(finished, "result.json").read_text())
    valid, test = (result[key]["ndcg@10"] for key in ("best_valid_result", "test_result"))
    assert f"| ndcg@10 | {valid:.4f} | {test:.4f} |" in card
    assert "# ETEGRecLlama on tiny" in card and "| items | 40 |" in card
    assert "finetune_epochs: 2" in card and "licence of the data may" in card
    assert main(["export", finished, f"--out={tmp_path}/new"]) == 0
    shown = capsys.readouterr().out
    assert f"exported to {tmp_path}/new" in shown and "KiB" in shown


@pytest.mark.parametrize("exclude", [True, False])
def test_exported_model_keeps_out_the_history_when_its_run_did(exclude, data, tmp_path):
    run_dir = trained(data, tmp_path / "run", exclude_history=exclude)
    export_run(run_dir, str(tmp_path / "out"))
    assert_recommends_as(run_dir, tmp_path / "out")
    history = ["i5", "i6", "i7"]
    for loaded in (load_exported(tmp_path / "out"), load_run(run_dir)[1:3]):
        (found,) = recommend(*loaded, [history], 40)
        assert {row.item for row in found}.isdisjoint(history) == exclude
        (found,) = recommend(*loaded, [history], 40, exclude_history=not exclude)
        assert {row.item for row in found}.isdisjoint(history) != exclude


def test_files_of_run_and_export_have_one_mode_when_written(finished, exported):
    for folder in (exported, Path(finished, "best")):
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
            folder.stat().st_mode & 0o666
        }


def test_export_has_added_items_when_the_run_has(finished, tmp_path):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    model = load_run(str(run_dir))[1]
    vector, base = model.item_embedding[3:4], model.codes.digest()
    codes = model.codes.codes_for(model.codes.table[3:4, :-1])
    tensors = vector, vector[:, :0], codes, vector[0], vector[0]
    added = AddedItems(["n1"], {"n1": "New"}, *tensors, base, bonus={})
    write_added_items(RunDirectory(run_dir), added)
    export_run(str(run_dir), str(tmp_path / "out"))
    model, catalogue = load_exported(tmp_path / "out")
    assert model.n_items == 42 and catalogue.tokens[-1] == "n1" and catalogue.titles[-1] == "New"
    assert_recommends_as(str(run_dir), tmp_path / "out")
    assert "before items were added" in (tmp_path / "out" / "README.md").read_text()


def test_export_is_refused_in_one_line_when_input_is_bad(finished, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    qlora = shutil.copytree(finished, tmp_path / "qlora")
    config = (qlora / "config.yaml").read_text()
    (qlora / "config.yaml").write_text(config.replace("tuning: full", "tuning: qlora"))
    unsaved = shutil.copytree(finished, tmp_path / "unsaved")
    shutil.rmtree(unsaved / "best")
    cases = {
        (): "export: expected the directory of a run",
        (finished,): "export: expected --out=DIR",
        (str(tmp_path), f"--out={tmp_path}/x"): "no config.yaml; is it the directory of a run?",
        (finished, f"--out={tmp_path}/full"): "full exists already; name a new directory",
        (finished, f"--out={tmp_path}/full/file"): "file exists already",
        (finished, f"--out={tmp_path}/full/file/x"): "cannot be written",
        (str(qlora), f"--out={tmp_path}/x"): "tuning (qlora): its adapters cannot be merged",
        (str(unsaved), f"--out={tmp_path}/x"): "holds no model.safetensors",
    }
    for arguments, message in cases.items():
        capsys.readouterr()
        assert main(["export", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert (tmp_path / "full" / "file").read_text() == "mine" and not (tmp_path / "x").exists()
    export_run(finished, str(tmp_path / "empty"))
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == FILES


def test_load_exported_is_refused_in_one_line_when_files_are_damaged(exported, tmp_path):
    def damaged(name: str) -> Path:
        copy = shutil.copytree(exported, tmp_path / name)
        assert load_exported(copy)
        return copy

    with pytest.raises(UserError, match="no model.safetensors; is it the directory of"):
        load_exported(tmp_path)
    folder = damaged("cut")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:5000])
    with pytest.raises(UserError, match="cut is damaged"):
        load_exported(folder)
    folder = damaged("codes")
    state = load_file(folder / "model.safetensors")
    save_file({**state, "codes.table": state["codes.table"].flip(1)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="codes is damaged .model.safetensors is missing or not"):
        load_exported(folder)
    write_checksums(folder)
    with pytest.raises(UserError, match="codes is damaged .its codes or items are not those"):
        load_exported(folder)
    folder = damaged("weights")
    state = load_file(folder / "model.safetensors")
    state.pop("recommender.code_embedding.codebooks")
    save_file(state, folder / "model.safetensors")
    write_checksums(folder)
    with pytest.raises(UserError, match="Missing key.*codebooks.*export the run again"):
        load_exported(folder)
    folder = damaged("items")
    names = json.loads((folder / "items.json").read_text())
    names["tokens"].pop()
    (folder / "items.json").write_text(json.dumps(names))
    with pytest.raises(UserError, match="items is damaged"):
        load_exported(folder)
    folder = damaged("old")
    old = {"values": {"hidden_size": 16}, "fields": {}, "n_items": 41}  # as it once was
    (folder / "config.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match="by a version before this: export the run again"):
        load_exported(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="old is damaged"):
        load_exported(folder)
