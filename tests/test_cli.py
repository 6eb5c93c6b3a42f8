"""The command line as a user types it: arguments, messages and exit codes."""

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_etegrec import __version__, quick_start
from recbole_etegrec.cli import main
from recbole_etegrec.cli.arguments import read
from recbole_etegrec.cli.commands import HANDLERS
from recbole_etegrec.cli.table import COMMANDS, PREPARE, RUN
from recbole_etegrec.config import Config
from recbole_etegrec.errors import Interrupted, TrainingError, UserError
from tests.conftest import write_interactions

SCRIPT = Path(__file__).parents[1] / "run_recbole.py"


def test_read_takes_both_forms_of_every_key():
    arguments = ["--model", "Pop", "--x=a", "--eval_args={'a':'b=c'}", "--y", "-1"]
    assert read("run", RUN, arguments).values == {
        "model": "Pop",
        "x": "a",
        "eval_args": "{'a':'b=c'}",
        "y": "-1",
    }


@pytest.mark.parametrize(
    ("name", "arguments", "places", "values"),
    [
        ("run", ["--resume", "--seed=1"], [], {"resume": "True", "seed": "1"}),
        ("run", ["--resume", "saved/run"], [], {"resume": "saved/run"}),
        ("run", ["--plan", "--check=False"], [], {"plan": "True", "check": "False"}),
        ("recommend", ["--all", "run", "--k", "5"], ["run"], {"all": "True", "k": "5"}),
        ("recommend", ["run", "--users-file", "f"], ["run"], {"users-file": "f"}),
        ("recommend", ["--num_beams", "5", "run"], ["run"], {"num_beams": "5"}),
        ("recommend", ["--all", "False", "run"], ["run"], {"all": "False"}),
        ("report", ["a", "--png", "b", "--out", "c"], ["a", "b"], {"png": "True", "out": "c"}),
    ],
)
def test_read_tells_flags_keys_and_places_apart(name, arguments, places, values):
    assert read(name, COMMANDS[name], arguments) == (places, values)


@pytest.mark.parametrize("name", [*COMMANDS, *(f"prepare {kind}" for kind in PREPARE)])
def test_help_shows_every_flag_and_an_example_that_can_be_read(name, capsys):
    words = name.split()
    assert main([*words, "--help"]) == 0
    text = capsys.readouterr().out
    command = COMMANDS[name] if name in COMMANDS else PREPARE[words[1]]
    assert all(f"--{flag.name}" in text and flag.help for flag in command.flags)
    for example in command.examples:
        assert example in text
        program, *typed = shlex.split(example)
        assert program == "recbole-etegrec" and typed[: len(words)] == words
        read(name, command, typed[len(words) :])
    assert command.examples or name == "prepare"
    assert main(["help", *words]) == 0
    assert capsys.readouterr().out == text


def test_defaults_in_the_help_are_those_of_a_run():
    config = Config(config_dict={"data_path": "dataset/"})
    for flag in RUN.flags:
        if flag.name in ("model", "dataset", "seed", "topk"):
            assert flag.default == str(config[flag.name]).replace(" ", "")


def test_program_prints_its_commands_and_trains_nothing_when_it_stands_alone(capsys):
    for arguments in ([], ["--help"], ["help"]):
        assert main(arguments) == 0
        text = capsys.readouterr().out
        assert all(f"\n  {name} " in text for name in HANDLERS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"recbole-etegrec {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["stray"], ["--epochs"], ["--epochs", "--x=1"], ["--=3"], ["-epochs=3"]]
)
def test_read_refuses_when_the_form_is_another(arguments):
    with pytest.raises(UserError, match="expected --key=value"):
        read("run", RUN, arguments)


def test_read_refuses_when_a_key_has_two_values():
    with pytest.raises(UserError, match="--seed is given twice: 1 and 2"):
        read("run", RUN, ["--seed=1", "--seed=2"])


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
        ("--dataset=tiny", data, "--num_beams=5", "--ranking=beam"): "must be >= max(topk) (20)",
        ("--dataset=tiny", data, f"--run_dir={tmp_path}/file"): "cannot be written",
        (f"--resume={tmp_path}/none",): "no config.yaml; is it the directory of a run?",
        ("--dataset=tiny", data, "--resume"): "resume (True) needs run_dir",
        ("--model=Nothing",): "unknown model 'Nothing'",
        ("--config_files=absent.yaml",): "config file absent.yaml: No such file",
        ("stray",): "unknown command 'stray': must be one of run, compare,",
        ("--hlep",): "did you mean 'help'?",
        ("--lr=0.1",): "did you mean 'learning_rate'?",
        ("--device=cpu",): "unknown config key 'device' (`run --help` says where",
        ("--config_files=tunde/SASRec",): "did you mean 'tuned/SASRec'?",
        ("compare", "--models", "Pop", "BPR"): "argument 'BPR': expected --key=value or --key va",
        ("check-data", "Beuaty"): "did you mean 'Beauty'?",
        ("report", str(tmp_path / "none")): "none: no config.yaml; is it the directory of a run?",
        ("recomend", "run"): "unknown command 'recomend'; did you mean 'recommend'?",
        ("run", "stray"): "expected --key=value",
        ("--plam",): "did you mean 'plan'?",
        ("--model=SASRecc",): "did you mean 'SASRec'?",
        ("--dataset=Beuaty",): "did you mean 'Beauty'?",
        ("compare", "--model=Pop"): "did you mean 'models'?",
        ("compare", "--models=Pop", "--job=2"): "did you mean 'jobs'?",
        ("report",): "expected the directories of runs",
        ("doctor", "--data_pth=x"): "did you mean 'data_path'?",
        ("prepare",): "must be one of amazon, csv, jsonl, sequences, etegrec",
        ("prepare", "amazn"): "did you mean 'amazon'?",
        ("prepare", "csv", "--inputs=x"): "did you mean 'input'?",
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
    assert main(["run"]) == code
    # An unforeseen error is logged, to wherever the log goes by then.
    assert text in capsys.readouterr().err or isinstance(raised, RuntimeError)


def test_absent_recbole_is_named_in_one_line():
    code = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "recbole" else find(name, *more)
import sys
from recbole_etegrec.cli import main
sys.exit(main(["doctor"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    message = "RecBole is not installed: pip install --no-deps recbole==1.2.1"
    assert done.stderr == f"error: {message}\n"


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


def test_typos_and_help_are_answered_when_nothing_heavy_is_imported(tmp_path):
    (tmp_path / "config.yaml").write_text("model: ETEGRecLlama\ndataset: ml-100k\n")
    (tmp_path / "ended").mkdir()
    for name in ("config.yaml", "result.json"):
        (tmp_path / "ended" / name).write_text("model: ETEGRecLlama\ndataset: ml-100k\n")
    typos = [
        ["--help"],
        ["run", "--help"],
        ["--dataset=Beuaty"],
        ["check-data", "Beuaty"],
        ["report", str(tmp_path / "none")],
        ["--num_beam", "5"],
        ["compare", "--models=SASRec,Popp"],
        ["recommend", str(tmp_path), "--user=3"],
        ["recommend", str(tmp_path), "--users=3", "--topk=3"],
        ["codes", str(tmp_path)],
        ["serve", str(tmp_path / "none")],
        ["--resume", str(tmp_path / "none")],
        ["--resume", str(tmp_path / "ended")],
        ["prepare", "amazon", "--review=x"],
    ]
    code = f"""
import sys
from recbole_etegrec.cli import main
codes = [main(arguments) for arguments in {typos}]
heavy = {{"torch", "numpy", "pandas", "recbole"}}.intersection(sys.modules)
sys.exit(f"{{codes}} {{heavy}}" if codes != [0, 0, *[2] * 12] or heavy else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "did you mean 'users'?" in done.stderr and "did you mean 'k'?" in done.stderr
    assert "not finished" in done.stderr and "ended has ended" in done.stderr
    assert "usage:" in done.stdout
