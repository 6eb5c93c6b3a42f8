"""The launch file of several machines, for real: two "machines" on loopback, a shared folder."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers import SMALL_MODEL

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
MULTI_NODE = ROOT / "properties" / "accelerate" / "multi_node.yaml"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(arguments: list[str], launcher: list[str]) -> subprocess.Popen:
    command = [sys.executable, *launcher, str(ROOT / "run_recbole.py"), *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_two_machines_train_as_one_process_does(tiny_data, tmp_path):
    data = shutil.copytree(tiny_data, tmp_path / "data")  # the columns of which are made here
    values = {**SMALL_MODEL, "data_path": str(data), "dataset": "tiny", "use_gpu": False}
    values |= {"psa_weight": 0.0, "epochs": 2, "binary_from_mib": 0, "item_head": True}
    values |= {"candidates": 20, "embedding_cache": str(tmp_path / "cache")}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    arguments = ["--model=ETEGRecLlama", f"--config_files={tmp_path / 'values.yaml'}"]
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(MULTI_NODE)]
    launch += ["--num_machines=2", "--num_processes=2", "--mixed_precision=no"]
    launch += ["--main_process_ip=127.0.0.1", f"--main_process_port={free_port()}"]
    machines = [
        start([*arguments, f"--run_dir={tmp_path / 'two'}"], [*launch, f"--machine_rank={rank}"])
        for rank in range(2)
    ]
    alone = start([*arguments, f"--run_dir={tmp_path / 'one'}"], [])
    for process in (*machines, alone):
        output = process.communicate(timeout=240)[0]
        assert process.returncode == 0, output
    one, two = (json.loads((tmp_path / run / "result.json").read_text()) for run in ("one", "two"))
    assert two["test_result"] == pytest.approx(one["test_result"], abs=1e-6)
    losses = [
        [line["recommendation"] for line in lines_of(file) if "recommendation" in line]
        for file in (tmp_path / run / "metrics.jsonl" for run in ("one", "two"))
    ]
    assert len(losses[0]) > 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert (data / "tiny" / "tiny.columns").is_dir()
