"""A run begins in a folder of its own: none that has files of others, or is held."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_etegrec.cli import main
from recbole_etegrec.errors import UserError
from recbole_etegrec.quick_start import run
from recbole_etegrec.runs.parts import load_data
from recbole_etegrec.runs.start import held_run_directory, record_settled, start_config
from recbole_etegrec.storage.run_directory import RunDirectory
from tests.helpers import small_config, small_model, small_values


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    run("ETEGRecLlama", "tiny", config_dict=values(tiny_data, path))
    return path


def values(data: str, path: Path, **more) -> dict:
    small = {"epochs": 0, "finetune_epochs": 1, "tokenizer_epochs": 1}
    return small_values(data, **{**small, "run_dir": str(path), **more})


@pytest.mark.parametrize(
    "files",
    [
        {"notes.md": "mine"},
        {"metrics.jsonl": "mine"},
        {"best/thesis.txt": "mine"},
        {"best/model.safetensors": "mine"},
        {"config.yaml": "mine: 1\n"},
        {"config.yaml": "model: ETEGRecLlama\ndataset: tiny\n", "best/model.json": "{}"},
        {"config.yaml": "[not a mapping"},
        {".git/config": "mine"},
        {"added_items.safetensors": "mine", "run.log": "mine"},
    ],
)
def test_run_is_refused_and_all_files_stay_when_a_folder_is_somebodys(files, tiny_data, tmp_path):
    for name, text in files.items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(text)
    before = contents(tmp_path / "mine")
    with pytest.raises(UserError, match=str(tmp_path / "mine")):
        run("ETEGRecLlama", "tiny", config_dict=values(tiny_data, tmp_path / "mine"))
    assert contents(tmp_path / "mine") == before


@pytest.mark.parametrize("more", [{"seed": 7}, {"model": "TIGER"}, {"learning_rate": 0.5}])
def test_run_is_refused_when_a_folder_holds_a_run_of_another_config(
    more, tiny_data, finished, tmp_path
):
    path = shutil.copytree(finished, tmp_path / "run")
    (path / "result.json").unlink()
    before = contents(path)
    given = values(tiny_data, path, **more)
    with pytest.raises(UserError, match="holds files of another run, whose config.yaml has"):
        run(given.pop("model", None), "tiny", config_dict=given)
    assert contents(path) == before


def test_run_begins_anew_when_a_folder_holds_the_beginning_of_it(tiny_data, finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "run")
    (path / "result.json").unlink()
    (path / ".config.yaml.12345.new").write_text("half")
    (path / ".lock").write_text("")
    run("ETEGRecLlama", "tiny", config_dict=values(tiny_data, path))
    now, then = contents(path), contents(finished)
    assert now.keys() - {n for n in now if "tensorboard" in n} == {
        name for name in then if "tensorboard" not in name
    }
    assert now["best/model.safetensors"] == then["best/model.safetensors"]


def test_number_of_codes_is_recorded_and_kept_when_it_follows_the_catalogue(tiny_data, tmp_path):
    def given(**more) -> dict:
        return values(tiny_data, tmp_path / "run", **{"code_num": None, **more})

    config, _ = start_config("ETEGRecLlama", "tiny", None, given())
    with held_run_directory(config, resume=False) as run_dir:
        assert run_dir.read_config()["code_num"] is None
        load_data(config)
        assert config["code_num"] == config.inputs["code_num"] == 16
        record_settled(config, run_dir)
    assert run_dir.read_config() == config.inputs

    start_config("ETEGRecLlama", "tiny", None, given())  # begins anew in the same folder
    with pytest.raises(UserError, match="has code_num 16, not 32"):
        start_config("ETEGRecLlama", "tiny", None, given(code_num=32))
    run_dir.write_config({**config.inputs, "code_num": 8})  # by a rule of another version
    for resume in (True, str(run_dir.path)):
        again, resumes = start_config("ETEGRecLlama", "tiny", None, given(resume=resume))
        load_data(again)
        assert resumes and again["code_num"] == 8


def test_number_of_codes_follows_the_catalogue_when_a_model_is_made_alone(tiny_data):
    config = small_config(tiny_data, code_num=None)
    model, _ = small_model(config)
    assert model.codes.code_num == config["code_num"] == 16


def test_number_of_codes_stays_when_it_is_given(tiny_data):
    config = small_config(tiny_data, code_num=7)
    load_data(config)
    assert config["code_num"] == 7


def test_best_is_kept_when_it_holds_files_of_others(tiny_data, finished, tmp_path):
    path = shutil.copytree(finished, tmp_path / "run")
    (path / "result.json").unlink()
    (path / "best" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"its best/ holds files that are no run's \(thesis.txt\)"):
        run("ETEGRecLlama", "tiny", config_dict=values(tiny_data, path))
    assert (path / "best" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("resume", [False, True])
def test_run_is_refused_when_another_process_holds_its_folder(resume, tiny_data, tmp_path):
    path = tmp_path / "run"
    config = small_config(tiny_data, run_dir=str(path), epochs=0)
    with held_run_directory(config, resume=False) as run_dir:
        (path / "last").mkdir()  # as far as a process may come before the other
        code = "import sys; from recbole_etegrec.cli import main; sys.exit(main(sys.argv[1:]))"
        how = f"--resume={path}" if resume else f"--run_dir={path}"
        if not resume:
            (path / "last").rmdir()
        command = [sys.executable, "-c", code, how]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: run_dir {run_dir.path}: another process is writing")
    assert done.stderr.count("\n") == 1


def test_resume_is_refused_when_the_run_ended_while_it_waited(tiny_data, finished):
    config, _ = start_config("ETEGRecLlama", "tiny", None, small_values(tiny_data))
    config["run_dir"] = str(finished)
    with (
        pytest.raises(UserError, match="has ended; see its result.json"),
        held_run_directory(config, resume=True),
    ):
        pass
    assert not (RunDirectory(finished).path / ".lock").exists()


def test_main_refuses_a_taken_folder_before_the_dataset_is_known(tmp_path, capsys):
    (tmp_path / "notes.md").write_text("mine")
    assert main([f"--run_dir={tmp_path}", "--dataset=NoSuchDataset"]) == 2
    error = capsys.readouterr().err
    assert error == (
        f"error: run_dir {tmp_path}: holds files that are no run's (notes.md); choose another "
        "run_dir\n"
    )
