"""Commands that are killed at any point, or started twice at once: no file is lost or half there.

Processes are forked from one that has imported everything already, so that a kill hits the work.
"""

import multiprocessing
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from recbole_etegrec import load_run, run
from recbole_etegrec.cli import main
from tests.helpers import small_values

pytestmark = pytest.mark.slow

SEEDS = range(8)
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [f"recbole_etegrec.inference.{name}" for name in ("command", "export", "new_items")]
)


def _child(arguments: list[str], errors: Path) -> None:
    import torch

    torch.set_num_threads(1)
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(main(arguments))


def started(arguments: list[str], errors: Path) -> multiprocessing.Process:
    process = CONTEXT.Process(target=_child, args=(arguments, errors))
    process.start()
    return process


def ended(process: multiprocessing.Process) -> int:
    process.join(120)
    return process.exitcode


class Command(NamedTuple):
    """A command line in a folder, what it makes there, and what says that it is done already."""

    arguments: Callable[[Path], list[str]]
    made: Callable[[Path], object]
    done: str


def _bytes(path: Path) -> bytes:
    return path.read_bytes()


COMMANDS = {
    "recommend": Command(
        lambda f: ["recommend", f"{f}/run", "--all", f"--out={f}/top.csv", "--eval_batch_size=4"],
        lambda f: _bytes(f / "top.csv"),
        "never",
    ),
    "export": Command(
        lambda f: ["export", f"{f}/run", f"--out={f}/model"],
        lambda f: [_bytes(f / "model" / name) for name in ("model.safetensors", "items.json")],
        "exists already",
    ),
    "add-items": Command(
        lambda f: ["add-items", f"{f}/run", f"--items={f}/n.item", f"--embeddings={f}/n.npy"],
        lambda f: load_run(str(f / "run"))[1].codes.table.tolist(),
        "are known to the run",
    ),
}


@pytest.fixture(scope="module")
def run_dir(tiny_data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    values = {"epochs": 0, "finetune_epochs": 1, "run_dir": str(folder / "run")}
    run("ETEGRecLlama", "tiny", config_dict=small_values(tiny_data, **values))
    assert ended(started(["--help"], folder / "log")) == 0  # all is imported from here on
    return folder / "run"


def workplace(run_dir: Path, folder: Path) -> Path:
    """A folder with a run, and with new items for it and their vectors."""
    folder.mkdir(parents=True)
    shutil.copytree(run_dir, folder / "run")
    names = [f"new{n}" for n in range(5)]
    (folder / "n.item").write_text("\n".join(["item_id:token", *names]) + "\n")
    vectors = np.random.default_rng(0).normal(size=(5, 10)).astype(np.float32)
    np.save(folder / "n.npy", vectors)
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", COMMANDS)
def test_command_gives_the_same_when_it_was_killed_before(name, run_dir, tmp_path):
    command = COMMANDS[name]
    whole, log = workplace(run_dir, tmp_path / "whole"), tmp_path / "log"
    begun = time.perf_counter()
    assert ended(started(command.arguments(whole), log)) == 0, log.read_text()
    seconds = time.perf_counter() - begun
    expected, names = command.made(whole), names_in(whole)
    for seed in SEEDS:
        folder = workplace(run_dir, tmp_path / str(seed))
        process = started(command.arguments(folder), log)
        time.sleep(random.Random(seed).uniform(0.1, 1) * seconds)
        process.kill()
        process.join()
        code = ended(started(command.arguments(folder), log))
        assert code == 0 or (code == 2 and command.done in log.read_text()), log.read_text()
        assert command.made(folder) == expected
        assert names_in(folder) == names


@pytest.mark.parametrize("name", COMMANDS)
def test_one_of_two_is_refused_when_they_start_at_once(name, run_dir, tmp_path):
    command = COMMANDS[name]
    folder, logs = workplace(run_dir, tmp_path / "two"), [tmp_path / "a", tmp_path / "b"]
    codes = [ended(process) for process in [started(command.arguments(folder), f) for f in logs]]
    assert sorted(codes) == [0, 2], [log.read_text() for log in logs]
    refusal = logs[codes.index(2)].read_text()
    assert refusal.startswith("error: ") and refusal.count("\n") == 1
    assert "another process is writing to it" in refusal or command.done in refusal
    whole = workplace(run_dir, tmp_path / "whole")
    assert ended(started(command.arguments(whole), logs[0])) == 0
    assert command.made(folder) == command.made(whole)
    assert names_in(folder) == names_in(whole)
