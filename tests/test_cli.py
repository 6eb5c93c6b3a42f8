"""The command line as a user types it: arguments, messages and exit codes."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_etegrec import quick_start
from recbole_etegrec.cli import main, parse_arguments
from recbole_etegrec.errors import Interrupted, TrainingError, UserError
from tests.conftest import write_interactions

SCRIPT = Path(__file__).parents[1] / "run_recbole.py"


def test_parse_arguments_takes_both_forms_when_named():
    values = parse_arguments(["--model", "Pop", "--dataset=a", "--eval_args={'a':'b=c'}"])
    assert values == {"model": "Pop", "dataset": "a", "eval_args": "{'a':'b=c'}"}


def test_parse_arguments_takes_resume_when_alone_or_with_a_directory():
    assert parse_arguments(["--resume", "--seed=1"]) == {"resume": "True", "seed": "1"}
    assert parse_arguments(["--resume=saved/run"]) == {"resume": "saved/run"}


@pytest.mark.parametrize(
    "arguments", [["stray"], ["--epochs"], ["--epochs", "3"], ["--=3"], ["-epochs=3"], ["--model"]]
)
def test_parse_arguments_refuses_when_the_form_is_another(arguments):
    with pytest.raises(UserError, match="expected --key=value"):
        parse_arguments(arguments)


def test_parse_arguments_refuses_when_a_key_has_two_values():
    with pytest.raises(UserError, match="--seed is given twice: 1 and 2"):
        parse_arguments(["--seed=1", "--seed=2"])


def one_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a refused command line, which ends with exit code 2."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_main_names_the_fault_in_one_line_when_input_is_bad(tiny_data, tmp_path, capsys):
    data = f"--data_path={tiny_data}"
    (tmp_path / "file").write_text("")
    cases = {
        ("--dataset=nothing", data): "dataset 'nothing': no file",
        ("--dataset=tiny", data, "--num_beam=5"): "did you mean 'num_beams'?",
        ("--dataset=tiny", data, "--num_beams=5"): "must be >= max(topk) (20)",
        ("--dataset=tiny", data, f"--run_dir={tmp_path}/file"): "cannot be written",
        (f"--resume={tmp_path}/none",): "no config.yaml; is it the directory of a run?",
        ("--dataset=tiny", data, "--resume"): "resume (True) needs run_dir",
        ("--model=Nothing",): "unknown model 'Nothing'",
        ("--config_files=absent.yaml",): "config file absent.yaml: No such file",
        ("stray",): "expected --key=value",
    }
    for arguments, message in cases.items():
        assert message in one_line(capsys, *arguments)


def test_main_names_file_and_line_when_a_column_is_missing(tmp_path, capsys):
    write_interactions(tmp_path, "d", [[1, 2, 3]])
    with (tmp_path / "d" / "d.inter").open("a") as lines:
        lines.write("u9\ti1\n")
    message = one_line(capsys, "--dataset=d", f"--data_path={tmp_path}")
    assert "d.inter, line 5: 2 columns, the header has 3" in message


def test_main_names_the_field_when_the_header_lacks_it(tmp_path, capsys):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "d.inter").write_text("user_id:token\titem_id:token\nu\ti\n")
    message = one_line(capsys, "--dataset=d", f"--data_path={tmp_path}")
    assert "missing field 'timestamp'" in message


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (Interrupted(signal.SIGINT, "stopped at epoch 2"), 130, "SIGINT: stopped at epoch 2\n"),
        (Interrupted(signal.SIGTERM, "stopped at once"), 143, "SIGTERM: stopped at once\n"),
        (TrainingError("out of memory"), 1, "error: out of memory\n"),
        (RuntimeError("boom"), 1, "RuntimeError: boom"),
    ],
)
def test_main_returns_its_code_when_the_run_ends_early(monkeypatch, capsys, raised, code, text):
    def fail(*_args, **_kwargs):
        raise raised

    monkeypatch.setattr(quick_start, "run", fail)
    assert main([]) == code
    # An unforeseen error is logged, to wherever the log goes by then.
    assert text in capsys.readouterr().err or isinstance(raised, RuntimeError)


@pytest.mark.slow
def test_script_runs_a_baseline_when_given_recboles_arguments(tiny_data, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("epochs: 5\nmetrics: [Recall]\nvalid_metric: Recall@10\n")
    arguments = [f"--config_files={file} {file}", "--epochs=1", f"--data_path={tiny_data}"]
    done = subprocess.run(
        [sys.executable, SCRIPT, "--model=Pop", "--dataset", "tiny", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"\d{4}-\d\d-\d\d ", done.stderr)  # nothing speaks before the log
    (run_dir,) = (tmp_path / "saved").iterdir()
    assert run_dir.name.startswith("Pop-tiny-")
    assert {"config.yaml", "metrics.jsonl", "result.json", "run.log"} <= {
        path.name for path in run_dir.iterdir()
    }
    assert "recall" in (run_dir / "run.log").read_text()


def test_help_is_answered_when_torch_cannot_be_imported():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from recbole_etegrec.cli import main; sys.exit(main(['--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "usage:" in done.stdout
