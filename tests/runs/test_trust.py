"""A run that somebody sent executes, fetches and writes nothing when it is used."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from recbole_etegrec import load_run, run
from recbole_etegrec.data import input_files
from recbole_etegrec.errors import UserError
from recbole_etegrec.runs.trust import offline
from recbole_etegrec.storage.run_directory import RunDirectory
from tests.helpers import small_values


class Executed:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory) -> dict[str, Path]:
    """Finished runs by model."""
    folder = tmp_path_factory.mktemp("sent")
    small = {"epochs": 1, "show_progress": False, "state": "WARNING", "data_path": tiny_data}
    run("BPR", "tiny", config_dict={**small, "run_dir": str(folder / "BPR")})
    values = small_values(tiny_data, epochs=0, run_dir=str(folder / "ETEGRecLlama"))
    run("ETEGRecLlama", "tiny", config_dict=values)
    return {name: folder / name for name in ("BPR", "ETEGRecLlama")}


def sent(run_dir: Path, to: Path, **changes) -> Path:
    """A copy of a run with other keys."""
    directory = RunDirectory(shutil.copytree(run_dir, to))
    directory.write_config({**directory.read_config(), **changes})
    return directory.path


@pytest.mark.parametrize("key", ["dataset_save_path", "dataloaders_save_path", None])
def test_load_unpickles_nothing_that_recbole_would_take_for_a_dataset(key, trained, tmp_path):
    mark = tmp_path / "executed"
    changes = {} if key is None else {key: str(tmp_path / "data.pth")}
    path = sent(trained["BPR"], tmp_path / "run", **changes)
    names = ["data.pth", "run/tiny-Dataset.pth", "run/tiny-for-BPR-dataloader.pth"]
    for name in names:
        (tmp_path / name).write_bytes(pickle.dumps(Executed(mark)))
    assert load_run(str(path))[1] is not None
    assert not mark.exists()


@pytest.mark.parametrize("model", ["BPR", "ETEGRecLlama"])
def test_load_writes_nothing_and_asks_no_address(model, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(input_files, "fetch_dataset", asked.append)
    given = {"download": "http://elsewhere.example/x.zip", "checkpoint_dir": str(tmp_path / "out")}
    writes = {"save_dataset": True, "save_dataloaders": True}
    path = sent(trained[model], tmp_path / "run", **given, **writes)
    before = sorted(file.stat().st_mtime_ns for file in path.rglob("*"))
    load_run(str(path))
    assert sorted(file.stat().st_mtime_ns for file in path.rglob("*")) == before
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
    assert not asked
    load_run(str(path), {"download": "ml-100k"})  # of the user's own
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("model", "keys", "named"),
    [
        ("KD_DAGFM", {"teacher": "__import__('os').mkdir('x')"}, "teacher"),
        ("LDiffRec", {"n_cate": 2}, "n_cate"),
    ],
)
def test_load_refuses_keys_that_recbole_executes(model, keys, named, tmp_path):
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump({"model": model, "dataset": "none", **keys})
    )
    with pytest.raises(UserError, match=rf"its config.yaml has {named} \(.*would execute"):
        load_run(str(tmp_path))
    with pytest.raises(UserError, match="dataset|unknown|no file"):
        load_run(str(tmp_path), {**keys, "dataset": "none"})


def test_load_refuses_yaml_that_makes_objects(tmp_path):
    text = f"model: !!python/object/apply:os.mkdir ['{tmp_path / 'executed'}']\n"
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="config.yaml"):
        load_run(str(tmp_path))
    assert not (tmp_path / "executed").exists()


def test_load_asks_no_hub_for_a_base_model(trained, tmp_path, monkeypatch):
    path = sent(trained["ETEGRecLlama"], tmp_path / "run", base_model="somebody/model-of-a-run")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match="not on this machine.*hf download somebody/model-of-a-run"):
        load_run(str(path))
    assert constants.HF_HUB_OFFLINE is False


def test_offline_stays_as_the_environment_has_it(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with offline(when=False):
        assert constants.HF_HUB_OFFLINE is True
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with offline(when=False):
        assert constants.HF_HUB_OFFLINE is False
    with pytest.raises(RuntimeError), offline():
        assert constants.is_offline_mode()
        raise RuntimeError
    assert not constants.is_offline_mode()
