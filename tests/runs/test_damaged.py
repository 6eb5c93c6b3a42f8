"""What a run has written may be damaged: it is refused in one line, or does not matter."""

import json

import pytest
import yaml
from safetensors.torch import save_file
from torch import ones

from recbole_etegrec.compare.measures import is_finished
from recbole_etegrec.errors import UserError
from recbole_etegrec.report.compared import compared_runs
from recbole_etegrec.report.page import report
from recbole_etegrec.runs.parts import config_of_run
from recbole_etegrec.runs.recorded_run import read_run
from recbole_etegrec.storage.digests import write_checksums
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer.checkpoint import read_model

CONFIG = {"model": "Pop", "dataset": "tiny", "seed": 1, "valid_metric": "NDCG@10"}
SCORES = {"ndcg@10": 0.5}
RESULT = {
    "model": "Pop",
    "dataset": "tiny",
    "seed": 1,
    "best_valid_score": 0.5,
    "best_valid_result": SCORES,
    "test_result": SCORES,
    "epochs": 1,
    "seconds": 2.0,
    "versions": {"torch": "2", "peft": None},
}
EPOCH = {"epoch": 0, "phase": "final", "trains": "recommender", "lr": 0.1, "valid_result": SCORES}
COLUMN = {"mean": 0.5, "std": None}
COMPARISON = {
    "dataset": "tiny",
    "valid_metric": "NDCG@10",
    "tables": {"kept": [{"model": "Pop", "columns": {"ndcg@10": COLUMN}}]},
    "runs": [{"run_dir": "run"}],
}


@pytest.fixture
def run(tmp_path):
    """The records of a finished run of a comparison."""
    folder = tmp_path / "run"
    (folder / "best").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "result.json").write_text(json.dumps(RESULT))
    (folder / "metrics.jsonl").write_text(json.dumps(EPOCH) + "\n")
    (folder / "measures.json").write_text(json.dumps({"test_result": {"kept": SCORES}}))
    (folder / "best/model.json").write_text(
        json.dumps({"phase": "final", "codes": "a", "frozen": None, "valid_result": SCORES})
    )
    save_file({"weight": ones(2)}, folder / "best/model.safetensors")
    write_checksums(folder / "best")
    (tmp_path / "comparison.json").write_text(json.dumps(COMPARISON))
    return folder


def read_all(run):
    """Read each record as the commands do that use a run, without its data."""
    read_run(str(run))
    config_of_run(RunDirectory(run))
    read_model(run / "best")
    is_finished(run, ["kept"])
    compared_runs([str(run.parent)])
    report([str(run)], look=False)


def test_records_are_read_when_they_are_whole(run):
    read_all(run)
    found = read_run(str(run))
    assert (found.config, found.result, found.records) == (CONFIG, RESULT, [EPOCH])
    assert (run / "report.html").is_file()


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "result.json",
        "metrics.jsonl",
        "measures.json",
        "best/model.json",
        "best/model.safetensors",
        "../comparison.json",
    ],
)
@pytest.mark.parametrize("content", [b"\xff\xfe{", b"", b"{}\n", b"[]\n", b'{"a', b"[[[\n"])
def test_damaged_record_is_refused_in_one_line_or_does_not_matter(run, name, content):
    (run / name).write_bytes(content)
    try:
        read_all(run)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
        assert (run / name).name in str(error) or "best" in str(error)
    else:
        assert (name, content) in {
            ("metrics.jsonl", b""),
            ("metrics.jsonl", b'{"a'),
            ("measures.json", b"{}\n"),
        }


@pytest.mark.parametrize("value", [None, "x", -5, [1], {"a": "b"}, True])
@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("config.yaml", CONFIG),
        ("result.json", RESULT),
        ("metrics.jsonl", EPOCH),
        ("measures.json", {"test_result": {"kept": SCORES}}),
        ("../comparison.json", COMPARISON),
    ],
)
def test_value_of_a_wrong_type_inside_is_refused_in_one_line_or_does_not_matter(
    run, name, whole, value
):
    for key in whole:
        (run / name).write_text(json.dumps({**whole, key: value}) + "\n")
        try:
            read_all(run)
        except UserError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
