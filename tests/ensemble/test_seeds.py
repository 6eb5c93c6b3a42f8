"""Members that are trained to be joined: killed in the middle, and gone on with."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recbole_etegrec.ensemble.command import ensemble
from tests.helpers import SMALL_MODEL

SHORT = {"item_head": True, "epochs": 0, "tokenizer_epochs": 1}

pytestmark = pytest.mark.slow


def values_of(data: str, out: Path) -> dict[str, str]:
    values = {key: str(value) for key, value in {**SMALL_MODEL, **SHORT}.items()}
    values |= {"dataset": "tiny", "data_path": data, "embedding_cache": f"{data}/cache"}
    return {**values, "seeds": "1,2", "out": str(out), "use_gpu": "False"}


def test_seeds_end_alike_when_they_were_killed_before(tiny_data, tmp_path):
    values = values_of(tiny_data, tmp_path / "killed")
    line = [f"--{key}={value}" for key, value in values.items()]
    code = "import sys; from recbole_etegrec.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "ensemble", *line],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    members = tmp_path / "killed" / "members"
    until = time.monotonic() + 120
    while not list(members.glob("*/result.json")) and time.monotonic() < until:
        time.sleep(0.2)  # the second is being trained then
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not (tmp_path / "killed" / "result.json").exists()
    times = {path: path.stat().st_mtime_ns for path in members.glob("*/result.json")}
    assert times
    text = ensemble([], values)
    assert text == ensemble([], values)  # told again
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    whole = values_of(tiny_data, tmp_path / "whole")
    ensemble([], whole)
    first, second = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("killed", "whole")
    )
    assert first["test_result"] == second["test_result"]
    assert [m["weight"] for m in first["members"]] == [m["weight"] for m in second["members"]]
