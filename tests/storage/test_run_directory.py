"""What a run leaves behind, and that it is whole or not there."""

import json
import logging
import os

import pytest

from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.atomic import atomic_directory, atomic_file
from recbole_etegrec.storage.logs import start_logging
from recbole_etegrec.storage.run_directory import RunDirectory, new_default


def test_create_starts_metrics_anew_when_a_run_did_not_finish(tmp_path):
    run_dir = RunDirectory.create(tmp_path / "a" / "b")
    run_dir.append_metrics({"epoch": 0})
    run_dir.append_metrics({"epoch": 1, "loss": 0.5})
    lines = run_dir.metrics.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]
    assert RunDirectory.create(run_dir.path).metrics.read_text() == ""


def test_create_refuses_when_a_run_was_stopped_there(tmp_path):
    run_dir = RunDirectory.create(tmp_path / "run")
    run_dir.best.mkdir()
    RunDirectory.create(run_dir.path)
    assert not run_dir.best.exists()  # of a run that left nothing to go on with
    for folder in (run_dir.last, run_dir.previous):
        folder.mkdir()
        with pytest.raises(UserError, match="holds a stopped run; --resume it or choose another"):
            RunDirectory.create(run_dir.path)
        folder.rmdir()


def test_clear_leftovers_deletes_what_is_half_written_alone(tmp_path):
    run_dir = RunDirectory.create(tmp_path)
    (tmp_path / ".last.new").mkdir()
    for name in (".last.new/model.safetensors", ".config.yaml.7.new", ".mine", "a.new"):
        (tmp_path / name).write_text("")
    run_dir.clear_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", ".mine", "a.new"}


def test_keep_metrics_cuts_the_lines_beyond_a_count_when_there_are_more(tmp_path):
    run_dir = RunDirectory.create(tmp_path)
    for epoch in range(4):
        run_dir.append_metrics({"epoch": epoch})
    for count, left in ((9, 4), (2, 2), (0, 0)):
        run_dir.keep_metrics(count)
        lines = run_dir.metrics.read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == list(range(left))
    run_dir.append_metrics({"epoch": 7})
    assert json.loads(run_dir.metrics.read_text())["epoch"] == 7


def test_create_refuses_when_the_run_is_finished_or_the_path_unwritable(tmp_path):
    run_dir = RunDirectory.create(tmp_path / "done")
    run_dir.write_json("result.json", {})
    with pytest.raises(UserError, match="choose another run_dir"):
        RunDirectory.create(run_dir.path)
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot be written"):
            RunDirectory.create(path)


def test_written_values_are_read_back_when_json_or_yaml(tmp_path):
    run_dir = RunDirectory.create(tmp_path)
    value = {"model": "Pop", "dataset": "d", "b": [1, 2.5, None], "a": "text"}
    run_dir.write_json("v.json", value)
    run_dir.write_config(value)
    assert run_dir.read_json("v.json") == value
    assert list(run_dir.read_config()) == ["model", "dataset", "b", "a"]
    assert run_dir.read_config() == value
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml", "metrics.jsonl", "v.json"]


def test_reading_a_run_names_the_file_when_it_is_missing_or_damaged(tmp_path):
    run_dir = RunDirectory.create(tmp_path)
    with pytest.raises(UserError, match="no config.yaml; is it the directory of a run"):
        run_dir.read_config()
    for text in ("a: [1", "- a", "a: 1\n\tb: 2"):
        run_dir.config.write_text(text)
        with pytest.raises(UserError, match="config.yaml") as caught:
            run_dir.read_config()
        assert "\n" not in str(caught.value)
    for text in ('{"epochs": 3', "[]", "{}"):
        run_dir.result.write_text(text)
        with pytest.raises(UserError, match=f"{run_dir.result}: damaged"):
            run_dir.read_result()
    run_dir.metrics.write_text('{"phase": "codes"}\n{"epoch"\n')
    with pytest.raises(UserError, match=f"{run_dir.metrics}, line 2: damaged"):
        run_dir.read_metrics()


def test_reading_a_run_names_one_nearby_when_the_directory_is_another(tmp_path):
    for age, name in enumerate(("best-of-all", "Pop-ml-100k-2026", "SASRec-ml-100k-2026")):
        run_dir = RunDirectory.create(tmp_path / "saved" / name)
        run_dir.write_config({"model": "Pop", "dataset": "d"})
        os.utime(run_dir.config, (0, 1000 - age))
    named = {
        "saved": "best-of-all",  # the newest
        "saved/RUN": "best-of-all",
        "saved/Pop-ml-100k-202": "Pop-ml-100k-2026",
        "saved/SASRec-ml-100k-2026/best": "SASRec-ml-100k-2026",
    }
    for path, name in named.items():
        with pytest.raises(UserError) as caught:
            RunDirectory(tmp_path / path).read_config()
        assert str(caught.value).endswith(f"a run? A run near it is {tmp_path / 'saved' / name}")
    with pytest.raises(UserError, match="a run[?]$"):
        RunDirectory(tmp_path / "elsewhere" / "RUN").read_config()


def test_reading_a_run_takes_what_is_there_when_it_still_goes_on(tmp_path):
    run_dir = RunDirectory.create(tmp_path)
    assert run_dir.read_result() == {}
    run_dir.metrics.write_text('{"phase": "codes"}\n{"epo')
    assert run_dir.read_metrics() == [{"phase": "codes"}]


def test_atomic_file_keeps_the_previous_one_when_writing_fails(tmp_path):
    path = tmp_path / "vectors"
    with atomic_file(path) as fresh:
        fresh.write_text("first")
        assert not path.exists()
    with pytest.raises(RuntimeError), atomic_file(path) as fresh:
        fresh.write_text("half")
        raise RuntimeError
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_directory_keeps_the_previous_one_when_writing_fails(tmp_path):
    best = tmp_path / "best"
    with atomic_directory(best) as folder:
        (folder / "model").write_text("first")
    with pytest.raises(RuntimeError), atomic_directory(best) as folder:
        (folder / "model").write_text("half")
        raise RuntimeError
    assert (best / "model").read_text() == "first"
    with atomic_directory(best) as folder:
        (folder / "other").write_text("second")
        assert (best / "model").read_text() == "first"
    assert [p.name for p in best.iterdir()] == ["other"]
    assert [p.name for p in tmp_path.iterdir()] == ["best"]


def test_atomic_directory_recovers_the_previous_one_when_a_swap_was_cut_short(tmp_path):
    (tmp_path / ".best.old").mkdir()
    (tmp_path / ".best.old" / "model").write_text("first")
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "best"):
        raise RuntimeError
    assert (tmp_path / "best" / "model").read_text() == "first"


def test_atomic_directory_keeps_the_one_before_when_told_where(tmp_path):
    last, previous = tmp_path / "last", tmp_path / "previous"
    for n in range(3):
        with atomic_directory(last, keep=previous) as folder:
            (folder / "model").write_text(str(n))
    with pytest.raises(RuntimeError), atomic_directory(last, keep=previous) as folder:
        (folder / "model").write_text("half")
        raise RuntimeError
    assert (last / "model").read_text() == "2"
    assert (previous / "model").read_text() == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "previous"]


def test_new_default_makes_another_directory_when_asked_in_the_same_second(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = [new_default("Pop", "tiny").path for _ in range(3)]
    assert len(set(made)) == 3
    assert all(path.is_dir() and path.name.startswith("Pop-tiny-") for path in made)


def test_start_logging_writes_to_one_run_when_a_second_starts(tmp_path):
    first, second = (RunDirectory.create(tmp_path / name) for name in "ab")
    start_logging(first)
    logging.getLogger("x").info("one \x1b[1;35mcoloured\x1b[0m")
    start_logging(second, "WARNING")
    logging.getLogger("x").info("two")
    logging.getLogger("x").warning("three")
    assert first.log.read_text().endswith("INFO one coloured\n")
    assert second.log.read_text().endswith("WARNING three\n")
    assert "two" not in second.log.read_text()


def test_start_logging_tells_errors_alone_when_there_is_no_run(tmp_path, capsys):
    run_dir = RunDirectory.create(tmp_path)
    start_logging(run_dir)
    start_logging(None, "DEBUG")
    logging.getLogger("x").warning("one")
    logging.getLogger("x").error("two")
    assert run_dir.log.read_text() == ""
    assert capsys.readouterr().err.endswith("ERROR two\n")
