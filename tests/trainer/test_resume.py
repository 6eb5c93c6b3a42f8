"""A run that was stopped, however that came, goes on to the result it would have had."""

import hashlib
import json
import multiprocessing
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from recbole_etegrec import cli, quick_start
from recbole_etegrec.data.item_embedding import ITEM_EMBEDDINGS
from recbole_etegrec.data.tasks import TASKS
from recbole_etegrec.storage.run_directory import RunDirectory
from recbole_etegrec.trainer import checkpoint
from tests.helpers import SMALL_MODEL
from tests.recommender.base_models import saved_with_texts
from tests.trainer import killed_worker
from tests.trainer.killed_worker import Trap

pytestmark = pytest.mark.slow

# All stages, with random numbers in every step, and the best model in the last of them.
VALUES = {
    **SMALL_MODEL,
    "dropout": 0.2,
    "residual_dropout": 0.1,
    "item_head": True,
    "item_dropout": 0.3,
    "item_vector_dropout": 0.2,
    "item_sample": 25,
    "tokenizer_epochs": 23,
    "epochs": 4,
    "cycle_epochs": 2,
    "warm_epochs": 0,
    "finetune_epochs": 3,
    "eval_step": 1,
    "valid_users": 30,
    "eval_batch_size": 10,
    "sia_weight": 0.01,
    "psa_weight": 0.01,
    "alternation_tokenizer_learning_rate": 0.005,
    "learning_rate": 0.01,
    "finetune_learning_rate": 0.01,
    "warmup_steps": 0.3,
    "max_tokens": 500,
    "use_gpu": False,
}
EPOCH_20 = "epoch 20 (pretraining), before its evaluation"
STEP = "recbole_etegrec.trainer.engine:Engine.step"
RANKING = "recbole_etegrec.decoding:FusedRanker.best"
RECORD = "recbole_etegrec.storage.run_directory:RunDirectory.append_metrics"
SAVE_FILE = "recbole_etegrec.trainer.checkpoint:save_file"
RENAME = "os:replace"


def after_pretraining(call: int) -> Trap:
    """A signal in a step of what follows pretraining, in which an epoch is one step."""
    return Trap(STEP, VALUES["tokenizer_epochs"] + call)


class Outcome(NamedTuple):
    """What must not depend on how often a run was stopped."""

    result: dict
    lines: list[dict]
    files: list[str]
    weights: str


def outcome_of(run_dir: Path) -> Outcome:
    result = json.loads((run_dir / "result.json").read_text())
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for record in (result, *lines):
        record.pop("seconds", None)
    files = sorted(path.name for path in run_dir.iterdir())
    weights = hashlib.sha256((run_dir / "best" / "model.safetensors").read_bytes())
    return Outcome(result, lines, files, weights.hexdigest())


def assert_same(run_dir: Path, unbroken: Outcome) -> None:
    """The outcome is that of the unbroken run, to the last bit."""
    found = outcome_of(run_dir)
    assert found.lines == unbroken.lines
    assert found.result == unbroken.result
    assert found.files == unbroken.files
    assert found.weights == unbroken.weights


def stand_of(run_dir: Path) -> str | None:
    """Where the checkpoint of a run says it stands."""
    found = checkpoint.load_last(RunDirectory(run_dir))
    return found and str(found[2])


Start = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Iterator[Start]:
    """Runs a command line in a fresh process; returns its exit code and what it has written."""
    log = tmp_path_factory.mktemp("log") / "log"
    context = multiprocessing.get_context("forkserver")  # modules are imported but once
    context.set_forkserver_preload([killed_worker.__name__])

    def start(*arguments: str, trap: Trap | None = None) -> tuple[int, str]:
        process = context.Process(target=killed_worker.work, args=(arguments, str(log), trap))
        process.start()
        process.join(120)
        if process.is_alive():
            process.kill()
            process.join()
            pytest.fail(f"does not end: {log.read_text()}")
        return process.exitcode, log.read_text()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        yield start


def arguments(data_path: str, run_dir: Path, **more: Any) -> list[str]:
    """The command line of the run that the tests stop."""
    values = {**VALUES, "data_path": data_path, "embedding_cache": f"{data_path}/cache"}
    values |= {"dataset": "tiny", "run_dir": run_dir, **more}
    return [f"--{key}={value}" for key, value in values.items()]


@pytest.fixture(scope="module")
def finished(start, tiny_data, tmp_path_factory) -> Path:
    """The directory of the run that was not stopped."""
    run_dir = tmp_path_factory.mktemp("unbroken") / "run"
    code, written = start(*arguments(tiny_data, run_dir))
    assert code == 0, written
    return run_dir


@pytest.fixture(scope="module")
def unbroken(finished) -> Outcome:
    return outcome_of(finished)


@pytest.fixture(scope="module")
def killed(start, tiny_data, tmp_path_factory) -> Path:
    """The directory of a run that was killed in its last phase; tests work on copies of it."""
    run_dir = tmp_path_factory.mktemp("killed") / "run"
    code, _ = start(*arguments(tiny_data, run_dir, save_steps=1), trap=after_pretraining(45))
    assert code == -signal.SIGKILL
    assert (run_dir / "last").is_dir()
    assert (run_dir / "previous").is_dir()
    return run_dir


def go_on(start: Callable, run_dir: Path) -> str:
    """Resume a run to its end; returns what it wrote to stderr."""
    code, written = start(f"--resume={run_dir}")
    assert code == 0, written
    return written


def copy_of(run_dir: Path, to: Path) -> Path:
    return Path(shutil.copytree(run_dir, to / "copy"))


def test_unbroken_run_trains_all_stages_in_several_steps_when_it_is_the_measure(unbroken):
    phases = [(line["phase"], line.get("trains")) for line in unbroken.lines]
    assert phases == [
        *[("pretraining", "tokenizer")] * 23,
        ("codes", None),
        *[("alternation", "tokenizer"), ("alternation", "recommender")] * 2,
        *[("final", "recommender")] * 3,
    ]
    assert all(line["changed"] > 0 for line in unbroken.lines[24:27:2])
    assert unbroken.result["best_valid_score"] > 0.2


# Killed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trap", "save_steps", "stand"),
    [
        pytest.param(Trap(STEP, 6), 0, None, id="before the first checkpoint"),
        pytest.param(Trap(STEP, 23), 0, EPOCH_20, id="pretraining"),
        pytest.param(
            after_pretraining(4), 1, "epoch 1 (alternation), step 3", id="tokenizer epoch"
        ),
        pytest.param(
            after_pretraining(13), 1, "epoch 2 (alternation), step 4", id="recommender epoch"
        ),
        pytest.param(
            after_pretraining(13), 3, "epoch 2 (alternation), step 3", id="steps after a save"
        ),
        pytest.param(
            after_pretraining(45),
            0,
            "epoch 5 (final), before its evaluation",
            id="epoch after a save",
        ),
        pytest.param(
            Trap(RANKING, 5), 0, "epoch 4 (alternation), before its evaluation", id="evaluation"
        ),
        pytest.param(
            Trap(RECORD, 26), 0, "epoch 2 (alternation), before its evaluation", id="best kept"
        ),
    ],
)
def test_resume_gives_the_unbroken_outcome_when_the_run_was_killed(
    trap, save_steps, stand, start, unbroken, tiny_data, tmp_path
):
    run_dir = tmp_path / "run"
    code, _ = start(*arguments(tiny_data, run_dir, save_steps=save_steps), trap=trap)
    assert code == -signal.SIGKILL
    assert stand_of(run_dir) == stand
    go_on(start, run_dir)
    assert_same(run_dir, unbroken)


@pytest.mark.parametrize(
    ("trap", "left"),
    [
        pytest.param(Trap(SAVE_FILE, 10), {"last", "previous"}, id="between two files"),
        pytest.param(Trap(RENAME, 8), {"previous"}, id="between two renames"),
    ],
)
def test_resume_gives_the_unbroken_outcome_when_the_run_was_killed_while_saving(
    trap, left, start, unbroken, tiny_data, tmp_path
):
    run_dir = tmp_path / "run"
    code, _ = start(*arguments(tiny_data, run_dir, save_steps=1), trap=trap)
    assert code == -signal.SIGKILL
    assert {name for name in ("last", "previous") if (run_dir / name).is_dir()} == left
    assert (run_dir / ".last.new" / "model.safetensors").exists()
    assert (run_dir / ".last.new" / "checksums.json").exists() == ("last" not in left)
    written = go_on(start, run_dir)
    assert "damaged" not in written
    assert_same(run_dir, unbroken)


def test_resume_gives_the_unbroken_outcome_when_code_tables_are_separate(
    start, tiny_data, tmp_path
):
    values = {"codebook_update": "separate", "finetune_from": "last", "psa_fixed_weight": 0.01}
    values |= {"schedule": ["pretraining", "alternation", "polish"], "save_steps": 1}
    code, written = start(*arguments(tiny_data, tmp_path / "unbroken", **values))
    assert code == 0, written
    run_dir = tmp_path / "run"
    for trap in (after_pretraining(30), Trap(STEP, 18)):
        code, _ = start(*arguments(tiny_data, run_dir, **values), "--resume", trap=trap)
        assert code == -signal.SIGKILL
    assert "(polish)" in stand_of(run_dir)
    go_on(start, run_dir)
    assert_same(run_dir, outcome_of(tmp_path / "unbroken"))


def test_resume_gives_the_unbroken_outcome_when_killed_among_tasks(start, texts_data, tmp_path):
    values = {"tasks": dict.fromkeys(TASKS, 0.5), "task_tokens": 6000, "user_codes": 2}
    values |= {"base_model": saved_with_texts(tmp_path), "tuning": "lora", "lora_r": 2}
    values |= {"schedule": ["pretraining", "tasks", "final"], "task_epochs": 1, "save_steps": 1}
    values |= {"finetune_epochs": 1, "tokenizer_epochs": 1}
    code, written = start(*arguments(texts_data, tmp_path / "unbroken", **values))
    assert code == 0, written
    run_dir = tmp_path / "run"
    code, _ = start(*arguments(texts_data, run_dir, **values), trap=Trap(STEP, 5))
    assert code == -signal.SIGKILL
    assert stand_of(run_dir) == "epoch 1 (tasks), step 3"
    go_on(start, run_dir)
    assert_same(run_dir, outcome_of(tmp_path / "unbroken"))


def test_resume_gives_the_unbroken_outcome_when_killed_again_and_again(
    start, unbroken, tiny_data, tmp_path
):
    run_dir = tmp_path / "run"
    code, _ = start(*arguments(tiny_data, run_dir), trap=Trap(STEP, 22))
    assert code == -signal.SIGKILL
    # The command that began the run goes on with it, and may save at other steps.
    again = [*arguments(tiny_data, run_dir, save_steps=2), "--resume"]
    stands = []
    for trap in (Trap(STEP, 6), Trap(STEP, 6), Trap(RANKING, 3), Trap(STEP, 20)):
        code, _ = start(*again, trap=trap)
        assert code == -signal.SIGKILL
        stands.append(stand_of(run_dir))
    assert len(set(stands)) == 4
    assert start(*again)[0] == 0
    assert_same(run_dir, unbroken)


def test_resume_stops_early_where_the_unbroken_run_does_when_scores_had_gone_down(
    start, tiny_data, tmp_path
):
    # So large a rate spoils the model, and the second worse score in a row ends the run.
    values = {"finetune_learning_rate": 1.0, "finetune_epochs": 4, "warmup_steps": 0}
    values["stopping_step"] = 1
    assert start(*arguments(tiny_data, tmp_path / "unbroken", **values))[0] == 0
    unbroken = outcome_of(tmp_path / "unbroken")
    assert len(unbroken.lines) == 23 + 1 + 4 + 2
    again = [*arguments(tiny_data, tmp_path / "run", save_steps=1, **values), "--resume"]
    assert start(*again, trap=after_pretraining(45))[0] == -signal.SIGKILL
    assert stand_of(tmp_path / "run") == "epoch 6 (final), step 4"
    assert start(*again)[0] == 0
    assert_same(tmp_path / "run", unbroken)


def test_resume_writes_nothing_to_stderr_when_all_is_well(start, killed, tmp_path):
    code, written = start(f"--resume={copy_of(killed, tmp_path)}")
    assert (code, written) == (0, "")


# Interrupted ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trap", "stand"),
    [
        (Trap(STEP, 22, signal.SIGTERM), "epoch 22 (pretraining), step 1"),
        (after_pretraining(12)._replace(number=signal.SIGTERM), "epoch 2 (alternation), step 4"),
        (after_pretraining(12)._replace(number=signal.SIGINT), "epoch 2 (alternation), step 4"),
    ],
)
def test_signal_ends_the_run_after_the_step_when_it_comes_in_one(
    trap, stand, start, unbroken, tiny_data, tmp_path
):
    run_dir = tmp_path / "run"
    code, written = start(*arguments(tiny_data, run_dir), trap=trap)
    assert code == 128 + trap.number
    stopped = f"{signal.Signals(trap.number).name}: stopped at {stand}"
    assert f"{stopped}; go on with --resume={run_dir}\n" in written
    assert written.count(stopped) == 1  # the log has said it
    assert stand_of(run_dir) == stand
    assert not (run_dir / "result.json").exists()
    written = go_on(start, run_dir)
    assert_same(run_dir, unbroken)


def test_signal_ends_the_run_at_once_when_it_comes_between_steps(
    start, unbroken, tiny_data, tmp_path
):
    run_dir = tmp_path / "run"
    trap = Trap(RANKING, 5, signal.SIGTERM)
    code, written = start(*arguments(tiny_data, run_dir), trap=trap)
    assert code == 143
    assert f"SIGTERM: stopped at once; go on with --resume={run_dir}\n" in written
    written = go_on(start, run_dir)
    assert_same(run_dir, unbroken)


# Damaged ----------------------------------------------------------------------------------------


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (flip_a_byte, "model.safetensors"),
        (flip_a_byte, "progress.json"),
        (flip_a_byte, "best/model.safetensors"),
        (cut_in_half, "optimizers.safetensors"),
        (cut_in_half, "checksums.json"),
        (Path.unlink, "optimizers.safetensors"),
        (Path.unlink, "checksums.json"),
    ],
)
def test_resume_takes_the_checkpoint_before_when_a_file_is_damaged(
    damage, name, start, killed, unbroken, tmp_path
):
    run_dir = copy_of(killed, tmp_path)
    damage(run_dir / "last" / name)
    written = go_on(start, run_dir)
    (warning,) = [line for line in written.splitlines() if "WARNING" in line]
    assert f"checkpoint {run_dir}/last: {name} is damaged" in warning
    assert_same(run_dir, unbroken)


def test_resume_gives_the_unbroken_outcome_when_best_is_newer_than_the_checkpoint(
    start, unbroken, tiny_data, tmp_path
):
    run_dir = tmp_path / "run"
    code, _ = start(*arguments(tiny_data, run_dir), trap=after_pretraining(45))
    assert code == -signal.SIGKILL
    flip_a_byte(run_dir / "last" / "model.safetensors")
    assert stand_of(run_dir) == "epoch 4 (alternation), before its evaluation"
    assert json.loads((run_dir / "best" / "model.json").read_text())["epoch"] == 4
    go_on(start, run_dir)
    assert_same(run_dir, unbroken)


def test_resume_refuses_when_every_checkpoint_is_damaged(start, killed, tmp_path):
    run_dir = copy_of(killed, tmp_path)
    for folder in ("last", "previous"):
        flip_a_byte(run_dir / folder / "model.safetensors")
    code, written = start(f"--resume={run_dir}")
    assert code == 2
    assert "resume: no checkpoint is whole" in written
    assert (run_dir / "last").is_dir()


def test_load_last_returns_none_when_there_is_no_checkpoint(tmp_path):
    assert checkpoint.load_last(RunDirectory(tmp_path)) is None


# A full disk ------------------------------------------------------------------------------------


@contextmanager
def full_disk(room: int = 4096) -> Iterator[None]:
    """No file can grow beyond a few bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_here(data_path: str, run_dir: Path) -> dict[str, Any]:
    values = {**VALUES, "data_path": data_path, "embedding_cache": f"{data_path}/cache"}
    return quick_start.run("ETEGRecLlama", "tiny", config_dict={**values, "run_dir": str(run_dir)})


def errors_in(run_dir: Path) -> list[str]:
    lines = (run_dir / "run.log").read_text().splitlines()
    return [line for line in lines if "ERROR" in line]


def test_run_goes_on_and_last_stays_when_the_disk_is_full(
    unbroken, tiny_data, tmp_path, monkeypatch
):
    save, stands = checkpoint.save_last, []

    def save_without_room(run_dir, *rest):
        if stands:
            before = contents(run_dir.last)
            try:
                with full_disk():
                    save(run_dir, *rest)
            finally:
                assert contents(run_dir.last) == before
                assert not (run_dir.path / ".last.new").exists()
                stands.append(stand_of(run_dir.path))
        else:
            save(run_dir, *rest)
            stands.append(stand_of(run_dir.path))

    monkeypatch.setattr(checkpoint, "save_last", save_without_room)
    run_here(tiny_data, tmp_path / "run")
    assert stands == [EPOCH_20] * 8
    errors = errors_in(tmp_path / "run")
    assert len(errors) == 7
    assert all("checkpoint not written (" in line for line in errors)
    assert_same(tmp_path / "run", unbroken)


def test_run_ends_with_its_best_model_on_disk_when_there_was_no_room_for_it_in_between(
    unbroken, tiny_data, tmp_path, monkeypatch
):
    save, writes = checkpoint.save_model, []

    def save_without_room(*arguments):
        writes.append(arguments[1]["epoch"])
        first_try = writes.count(writes[-1]) == 1
        with full_disk() if first_try else nullcontext():
            save(*arguments)

    monkeypatch.setattr(checkpoint, "save_model", save_without_room)
    run_here(tiny_data, tmp_path / "run")
    assert errors_in(tmp_path / "run")
    assert_same(tmp_path / "run", unbroken)


# Refused, or begun anew -------------------------------------------------------------------------


def refusal(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """The one line of a command line that ends with exit code 2."""
    capsys.readouterr()
    assert cli.main(command) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    return line


def test_resume_is_refused_when_the_run_has_ended(finished, unbroken, tiny_data, capsys):
    for command in ([f"--resume={finished}"], [*arguments(tiny_data, finished), "--resume"]):
        line = refusal(capsys, *command)
        assert f"the run in {finished} has ended; see its result.json" in line
    assert_same(finished, unbroken)


def test_resume_is_refused_when_the_directory_is_no_runs(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "absent"):
        line = refusal(capsys, f"--resume={path}")
        assert f"run_dir {path}: no config.yaml; is it the directory of a run?" in line


def test_resume_is_refused_when_a_key_has_another_value(killed, tiny_data, capsys):
    before = contents(killed / "last")
    for command in (
        [f"--resume={killed}", "--hidden_size=32"],
        [*arguments(tiny_data, killed, hidden_size=32), "--resume"],
    ):
        line = refusal(capsys, *command)
        assert "resume: hidden_size (32) was 16 when the run" in line
        assert "leave it out, or start a new run" in line
    assert contents(killed / "last") == before


def test_resume_takes_the_vectors_that_the_run_began_with_when_a_source_gives_others(
    killed, unbroken, tmp_path, monkeypatch
):
    run_dir = copy_of(killed, tmp_path / "run")
    monkeypatch.setitem(ITEM_EMBEDDINGS, "collaborative", lambda *given: 1 / 0)
    assert cli.main([f"--resume={run_dir}"]) == 0
    assert_same(run_dir, unbroken)


def test_resume_is_refused_when_the_vectors_or_the_identity_of_the_run_are_gone(
    killed, tmp_path, capsys
):
    run_dir = copy_of(killed, tmp_path / "run")
    flip_a_byte(run_dir / "item_embedding.safetensors")
    assert "item_embedding.safetensors: damaged" in refusal(capsys, f"--resume={run_dir}")
    (run_dir / "identity.json").unlink()
    assert "has no identity.json" in refusal(capsys, f"--resume={run_dir}")


def test_resume_is_refused_when_no_run_dir_is_given(tiny_data, capsys):
    command = [a for a in arguments(tiny_data, Path()) if not a.startswith("--run_dir")]
    line = refusal(capsys, *command, "--resume")
    assert "resume (True) needs run_dir" in line


def test_resume_is_refused_when_the_model_is_recboles(start, tiny_data, tmp_path, capsys):
    run_dir = tmp_path / "run"
    command = ["--model=BPR", "--dataset=tiny", f"--data_path={tiny_data}", "--use_gpu=False"]
    command.append(f"--run_dir={run_dir}")
    trap = Trap("recbole_etegrec.quick_start:run_baseline", 1)
    assert start(*command, trap=trap)[0] == -signal.SIGKILL
    for again in ([f"--resume={run_dir}"], [*command, "--resume"]):
        assert "RecBole's own models (BPR) start anew; leave it out" in refusal(capsys, *again)


def test_resume_begins_the_run_when_it_has_not_begun(start, unbroken, tiny_data, tmp_path):
    run_dir = tmp_path / "new" / "run"
    code, written = start(*arguments(tiny_data, run_dir), "--resume")
    assert code == 0, written
    assert_same(run_dir, unbroken)
