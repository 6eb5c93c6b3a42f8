"""One process at a time: what another holds is refused, and a dead one holds nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.lock import held_folder, held_output, refuse_held, strangers

HOLDER = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from recbole_etegrec.storage import lock\n"
    "with {held}:\n"
    "    print('held', flush=True)\n"
    "    time.sleep(60)\n"
)


def holder(held: str) -> subprocess.Popen:
    """Another process that holds something until it is ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER.format(held=f"lock.{held}")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_held_folder_refuses_when_another_process_holds_it(tmp_path):
    process = holder(f"held_folder(Path({str(tmp_path)!r}), 'run_dir R')")
    try:
        wanted = "^run_dir R: another process is writing to it: wait until it has ended"
        with pytest.raises(UserError, match=wanted), held_folder(tmp_path, "run_dir R"):
            pass
        with pytest.raises(UserError, match=wanted):
            refuse_held(tmp_path, "run_dir R")
    finally:
        end(process)
    assert (tmp_path / ".lock").exists()  # a dead process leaves it, and does not hold it
    with held_folder(tmp_path, "run_dir R"):
        assert strangers(tmp_path) == []
    refuse_held(tmp_path, "run_dir R")
    assert list(tmp_path.iterdir()) == []


def test_held_output_refuses_when_another_process_writes_it(tmp_path):
    path = tmp_path / "top.csv"
    process = holder(f"held_output(Path({str(path)!r}))")
    try:
        with pytest.raises(UserError, match=f"out {path}: another process"), held_output(path):
            pass
        with held_output(tmp_path / "other.csv"):
            pass
    finally:
        end(process)
    for name in (".top.csv.123.new", ".top.csv.bak.4.new", ".other.csv.5.new"):
        (tmp_path / name).write_text("half")
    with held_output(path):
        pass
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == [".other.csv.5.new", ".top.csv.bak.4.new"]  # what others may be writing


def test_held_folder_is_held_until_the_outer_block_ends_when_nested(tmp_path):
    with held_folder(tmp_path, "a"):
        with held_folder(tmp_path, "a"):
            pass
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()


def test_held_folder_refuses_when_it_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match="^a: cannot be written"), held_folder(tmp_path / "b", "a"):
        pass


@pytest.mark.slow
def test_held_output_lets_one_in_at_a_time_when_many_come(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from recbole_etegrec.errors import UserError\n"
        "from recbole_etegrec.storage.lock import held_output\n"
        "folder, inside = Path(sys.argv[1]), 0\n"
        "for _ in range(400):\n"
        "    try:\n"
        "        with held_output(folder / 'x'):\n"
        "            (folder / 'inside').touch(exist_ok=False)\n"
        "            (folder / 'inside').unlink()\n"
        "            inside += 1\n"
        "    except UserError:\n        pass\n"
        "print(inside)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    counts = [int(process.communicate()[0]) for process in started]
    assert [process.returncode for process in started] == [0] * 4
    assert all(counts)
    assert list(Path(tmp_path).iterdir()) == []
