"""A full disk: one line that names the file, whatever was written, and a run that can go on."""

import errno
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from recbole_etegrec import cli
from recbole_etegrec.cli import commands
from recbole_etegrec.errors import unwritable
from recbole_etegrec.storage.atomic import atomic_directory, atomic_file
from recbole_etegrec.storage.logs import start_logging
from recbole_etegrec.storage.run_directory import RunDirectory
from tests.helpers import small_values
from tests.trainer.test_resume import full_disk

SCRIPT = Path(__file__).parents[1] / "run_recbole.py"


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(10**5)),
        lambda path: save_file({"a": torch.ones(10**5)}, path),
        lambda path: torch.save({"a": torch.ones(10**5)}, path),
    ],
)
def test_error_names_the_file_when_any_library_finds_no_room(write, tmp_path):
    path = tmp_path / "file"
    for context in (atomic_file(path), atomic_directory(path)):
        with full_disk(), pytest.raises(OSError) as raised, context as fresh:
            write(fresh / "part" if fresh.is_dir() else fresh)
        assert str(path) in unwritable(raised.value)
        assert not list(tmp_path.iterdir())


def test_metrics_name_their_file_when_there_is_no_room(tmp_path):
    run_dir = RunDirectory.create(tmp_path)
    with full_disk(room=4), pytest.raises(OSError) as raised:
        run_dir.append_metrics({"epoch": 0})
    assert str(run_dir.metrics) in unwritable(raised.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_command_ends_with_one_line_when_it_cannot_write(number, monkeypatch, capsys):
    def fail(_):
        raise OSError(number, os.strerror(number), "/full/file")

    monkeypatch.setitem(commands.HANDLERS, "doctor", fail)
    assert cli.main(["doctor"]) == 2
    assert f"error: /full/file: {os.strerror(number)}: make room" in capsys.readouterr().err


def test_other_errors_are_no_matter_of_room():
    assert unwritable(OSError("odd")) is None
    assert unwritable(FileNotFoundError(errno.ENOENT, "no", "x")) is None
    assert unwritable(RuntimeError("shape mismatch")) is None


def test_log_says_once_that_it_is_cut_short_when_there_is_no_room(tmp_path, capsys):
    start_logging(RunDirectory.create(tmp_path))
    with full_disk(room=4):
        for _ in range(3):
            logging.getLogger("x").warning("a line")
        start_logging(None)
    error = capsys.readouterr().err
    assert error.count("run.log: cut short") == 1 and "Traceback" not in error


@pytest.mark.slow
def test_run_ends_with_one_line_and_goes_on_when_room_is_made(tiny_data, tmp_path):
    values = {**small_values(tiny_data), "use_gpu": False, "run_dir": str(tmp_path / "run")}
    arguments = [f"--{key}={value}" for key, value in values.items()]

    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, resource.RLIM_INFINITY))

    command = [sys.executable, SCRIPT, "--dataset=tiny", *arguments]
    quiet = {"capture_output": True, "text": True, "cwd": tmp_path}
    done = subprocess.run(command, preexec_fn=no_room, **quiet)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ") and "/run" in done.stderr
    command = [sys.executable, SCRIPT, f"--resume={tmp_path / 'run'}"]
    assert subprocess.run(command, **quiet).returncode == 0
