"""Several processes, started by accelerate's launcher: they train as one, and end as one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from recbole_etegrec.data.tasks import TASKS
from recbole_etegrec.losses import OBJECTIVES
from tests.helpers import SMALL_MODEL, small_config, small_data
from tests.recommender.base_models import saved, saved_with_texts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT, WORKER = ROOT / "run_recbole.py", Path(__file__).with_name("distributed_worker.py")
CONFIGS = ROOT / "properties" / "accelerate"

# Batches of 7 users, and steps of few tokens: shares of unequal size, some of them empty.
VALUES = {
    **SMALL_MODEL,
    "dataset": "tiny",
    "use_gpu": False,
    "epochs": 4,
    "finetune_epochs": 2,
    "warm_epochs": 0,
    "sia_weight": 0.01,
    "psa_weight": 0.01,
    "max_tokens": 256,
    "eval_batch_size": 7,
}
SAMPLED = {"eval_args": {"mode": "uni20"}, "epochs": 2}
# The negatives of PSA come from one micro-batch, so with it a step depends on how it is split. All
# users are one batch here: the second process has none to rank.
NO_PSA = {"psa_weight": 0.0, "eval_batch_size": 64, "projector_init": "matched"}
LORA = {"tuning": "lora", "lora_r": 4, "lora_dropout": 0.0, "projector_init": "matched"}
LORA |= {"learning_rate": 5e-4, "finetune_learning_rate": 5e-4}
HEAD = {"item_head": True, "candidates": 20, "projector_init": "matched", "epochs": 2}
CHANGES = {
    "shared": {"codebook_update": "shared"},
    "tokenizer_only": {"codebook_update": "tokenizer_only"},
    # Few steps: T5 makes more of sums that have been rounded otherwise.
    "encoder": {
        "model": "ETEGRec",
        "MAX_ITEM_LIST_LENGTH": 10,
        "max_tokens": 1024,
        "step_targets": 60,
        "learning_rate": 0.001,
        "cycle_epochs": 2,
        "finetune_epochs": 0,
    },
    "separate": {
        "codebook_update": "separate",
        "schedule": ["pretraining", "alternation", "polish"],
        "epochs": 3,
        "finetune_epochs": 1,
        "psa_fixed_weight": 0.01,
    },
    "sampled": SAMPLED,
    "lora": LORA,
    "head": HEAD,
    "preference": {
        **HEAD,
        "schedule": ["pretraining", "alternation", "preference"],
        "preference_epochs": 2,
        "preference_likelihood": 0.0,
        "preference_group": 8,
        "preference_temperature": 1.0,
        "preference_max_dead": 1.0,
        "preference_min_coverage": 0.0,
        "preference_min_recall": 0.0,
    },
    "whole": NO_PSA,
    "micro_batches": {**NO_PSA, "gradient_accumulation_steps": 2},
    "tasks": {
        **LORA,
        "tasks": dict.fromkeys(TASKS, 0.5),
        "task_tokens": 6000,
        "task_epochs": 1,
        "user_codes": 2,
        "max_tokens": 1024,
        "schedule": ["pretraining", "tasks", "final"],
        "finetune_epochs": 1,
        "item_head": True,
        "candidates": 20,
    },
}


class Ended(NamedTuple):
    """A process that has ended.

    Attributes:
        output: of it and its children, stdout and stderr.
    """

    code: int
    output: str


def execute(*command: str | Path, limit: float = 300) -> Ended:
    """Run a command in the repository and wait for it and its children."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output = process.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        process.terminate()  # a launcher then ends its processes; killed, it would leave them
        output = process.communicate()[0]
        pytest.fail(f"not over after {limit} s:\n{output}")
    return Ended(process.returncode, output)


def launch(*command: str | Path, config: str = "cpu_2", limit: float = 300) -> Ended:
    """Run a script in two processes."""
    accelerate = Path(sys.executable).with_name("accelerate")
    options = ("--config_file", CONFIGS / f"{config}.yaml", "--main_process_port", "0")
    options += ("--num_processes", "2")
    return execute(accelerate, "launch", *options, *command, limit=limit)


def small_run(data_path: str, run_dir: Path, **changes) -> dict:
    """The values of a small run."""
    paths = {"data_path": data_path, "run_dir": str(run_dir)}
    return {**VALUES, **paths, "embedding_cache": f"{run_dir}.cache", **changes}


def arguments(values: dict) -> list[str]:
    """The same for a command line."""
    return [f"--{key}={value}" for key, value in values.items()]


def plan(data_path: str, texts_path: str, folder: Path, names: Iterable[str]) -> Path:
    """Tell `distributed_worker.py` what to run; returns the folder."""
    runs = {name: small_run(data_path, folder / name, **CHANGES[name]) for name in names}
    if "lora" in runs:
        runs["lora"]["base_model"] = saved(folder)
    if "tasks" in runs:
        runs["tasks"] |= {"base_model": saved_with_texts(folder), "data_path": texts_path}
    (folder / "plan.json").write_text(json.dumps(runs))
    return folder


@pytest.fixture(scope="module")
def one_process(tiny_data, texts_data, tmp_path_factory) -> Path:
    """The folder with the runs of one process, by name."""
    folder = plan(tiny_data, texts_data, tmp_path_factory.mktemp("one"), CHANGES)
    ended = execute(sys.executable, WORKER, "record", folder)
    assert ended.code == 0, ended.output
    return folder


@pytest.fixture(scope="module")
def two_processes(tiny_data, texts_data, tmp_path_factory) -> Path:
    """The folder with the runs of two processes, by name, and ``NAME.RANK.json`` of each."""
    names = ("shared", "tokenizer_only", "separate", "encoder", "lora", "head", "preference")
    names += ("micro_batches", "tasks")
    folder = plan(tiny_data, texts_data, tmp_path_factory.mktemp("two"), names)
    ended = launch(WORKER, "record", folder)
    assert ended.code == 0, ended.output
    return folder


# Training -----------------------------------------------------------------------------------------


def result_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "result.json").read_text())


def epochs_of(run_dir: Path) -> list[dict]:
    """The lines of metrics.jsonl, of pretraining and of the first codes too."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(first: Path, second: Path) -> None:
    """Every line of two runs says the same; sums may have been rounded otherwise."""
    rounded = {*OBJECTIVES, "reconstruction", "kl"}
    for one, two in zip(epochs_of(first), epochs_of(second), strict=True):
        assert one.keys() == two.keys()
        for key in one:
            if key == "seconds":
                continue
            if key in rounded or key.startswith(("norm_", "share_")):
                tolerance = 1e-4 if key in rounded else 1e-3
                tolerance *= 10 if key.startswith("share_") else 1  # of sums that nearly cancel out
                assert one[key] == pytest.approx(two[key], rel=tolerance), (one["epoch"], key)
            else:
                assert one[key] == two[key], (one["epoch"], key)


def assert_same_outcome(first: Path, second: Path) -> None:
    """Two runs end with the same metrics, to the last digit, and with the same codes."""
    for key in ("best_valid_score", "best_valid_result", "test_result", "epochs"):
        assert result_of(first)[key] == result_of(second)[key], key
    one, two = (json.loads((d / "best" / "model.json").read_text()) for d in (first, second))
    assert (one["epoch"], one["codes"]) == (two["epoch"], two["codes"])
    assert one.get("ranking") == two.get("ranking")


def test_small_run_has_unequal_shares_when_two_processes_split_it(tiny_data):
    loaders = small_data(small_config(tiny_data, **VALUES))[1]
    assert len(loaders.valid) % 2 == len(loaders.test) % 2 == 1
    assert len(loaders.valid._dataset.inter_feat) % 2 == 1
    windows = [len(rows) for rows in loaders.train.steps]
    assert len(windows) > 5
    assert {count % 2 for count in windows} == {0, 1}
    assert min(windows) == 1  # a process without a target


@pytest.mark.parametrize("name", ["shared", "tokenizer_only", "lora"])
def test_run_trains_the_same_when_two_processes_share_it(name, one_process, two_processes):
    one, two = one_process / name, two_processes / name
    assert_same_training(one, two)
    assert_same_outcome(one, two)
    lines = epochs_of(two)
    assert [line.get("trains") for line in lines[3:]] == [
        *["tokenizer", "recommender"] * 2,
        *["recommender"] * 2,
    ]
    assert all(line["skipped"] == 0 for line in lines[3:])
    assert all({"sia", "psa"} <= line.keys() for line in lines[4:7])
    assert lines[-1]["recommendation"] < lines[4]["recommendation"]


@pytest.mark.parametrize("name", ["separate", "encoder", "head", "preference", "tasks"])
def test_run_trains_the_same_when_two_processes_share_other_parts(name, one_process, two_processes):
    assert_same_training(one_process / name, two_processes / name)
    assert_same_outcome(one_process / name, two_processes / name)
    assert ("item" in epochs_of(two_processes / name)[-1]) == (name in ("head", "tasks"))
    assert ("grpo" in epochs_of(two_processes / name)[-1]) == (name == "preference")


@pytest.mark.parametrize("name", ["shared", "tokenizer_only", "lora"])
def test_processes_hold_the_same_model_when_a_stage_ends(name, two_processes):
    first, second = (
        json.loads((two_processes / f"{name}.{rank}.json").read_text()) for rank in (0, 1)
    )
    assert [stage for stage, _ in first] == [
        *["_train_epoch"] * 2,
        "settle_codes",
        *["_train_epoch"] * 6,
        "fit",
    ]
    assert first == second
    assert len({digest for _, digest in first[:-1]}) == 9  # each stage has moved something


@pytest.mark.parametrize("processes", [1, 2])
def test_run_trains_the_same_when_steps_are_computed_in_micro_batches(
    processes, one_process, two_processes
):
    micro_batches = {1: one_process, 2: two_processes}[processes] / "micro_batches"
    assert_same_training(one_process / "whole", micro_batches)
    assert_same_outcome(one_process / "whole", micro_batches)


def test_script_ranks_the_same_sampled_items_when_launched_twofold(
    one_process, tiny_data, tmp_path
):
    values = small_run(tiny_data, tmp_path / "run", **SAMPLED)
    ended = launch(SCRIPT, *arguments(values))
    assert ended.code == 0, ended.output
    assert_same_training(one_process / "sampled", tmp_path / "run")
    assert_same_outcome(one_process / "sampled", tmp_path / "run")
    assert 0 < result_of(tmp_path / "run")["test_result"]["recall@5"] < 1


@pytest.mark.parametrize("name", ["shared", "lora", "head"])
def test_run_trains_nearly_the_same_when_the_backbone_is_sharded(
    name, one_process, tiny_data, tmp_path
):
    values = small_run(tiny_data, tmp_path / "run", **CHANGES[name])
    if name == "lora":
        values["base_model"] = saved(tmp_path)
    ended = launch(WORKER, "shard", *arguments(values), config="fsdp_bf16")
    assert ended.code == 0, ended.output
    one, two = epochs_of(one_process / name), epochs_of(tmp_path / "run")
    assert len(one) == len(two)
    for first, second in zip(one[2:], two[2:], strict=True):
        for name in OBJECTIVES:
            # Sums over shards round otherwise, and small steps of AdamW make more of that.
            assert (name in first) == (name in second)
            if name in first:
                assert first[name] == pytest.approx(second[name], rel=1e-2), (first["epoch"], name)
    assert result_of(tmp_path / "run")["test_result"]["recall@20"] > 0


@pytest.mark.parametrize("name", ["lora", "head"])
def test_run_trains_nearly_the_same_in_bf16_when_the_backbone_is_sharded(
    name, one_process, tiny_data, tmp_path
):
    changes = {**CHANGES[name], "precision": "bf16", "gradient_checkpointing": True}
    values = small_run(tiny_data, tmp_path / "run", **changes)
    if name == "lora":
        values["base_model"] = saved(tmp_path)
    ended = launch(WORKER, "shard", *arguments(values), config="fsdp_bf16")
    assert ended.code == 0, ended.output
    for full, half in zip(epochs_of(one_process / name), epochs_of(tmp_path / "run"), strict=True):
        if "recommendation" in full:
            assert half["recommendation"] == pytest.approx(full["recommendation"], rel=0.03)


# Endings ------------------------------------------------------------------------------------------


def test_launch_ends_soon_when_one_process_fails(tiny_data, tmp_path):
    values = small_run(tiny_data, tmp_path / "run")
    ended = launch(WORKER, "fail", "3", *arguments(values), limit=60)
    assert ended.code != 0
    assert "RuntimeError: rank 1 breaks in step 3" in ended.output
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_beam": 5}, "unknown config key 'num_beam'; did you mean 'num_beams'?"),
        ({"model": "BPR"}, "model BPR: RecBole's own trainers know nothing of accelerate"),
    ],
)
def test_launch_says_why_in_one_line_when_a_run_is_refused(changes, message, tiny_data, tmp_path):
    values = {"dataset": "tiny", "data_path": tiny_data, "run_dir": tmp_path / "run"}
    ended = launch(SCRIPT, *arguments({**values, "use_gpu": False, **changes}), limit=60)
    assert ended.code != 0
    (line,) = {line for line in ended.output.splitlines() if line.startswith("error: ")}
    assert line.startswith(f"error: {message}")
    assert "recbole_etegrec/" not in ended.output  # no traceback of ours
    assert not (tmp_path / "run").exists()


# Configurations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configuration_is_one_of_accelerate_when_read_by_its_parser(path):
    config = load_config_from_file(str(path))
    assert config.num_processes >= 2
    assert config.num_processes % config.num_machines == 0
    options = vars(launch_command_parser().parse_args(["script.py"]))
    assert config.fsdp_config.keys() <= options.keys()
    head = path.read_text().split("compute_environment")[0].splitlines()
    assert all(line.startswith("# ") for line in head)
    name = path.relative_to(ROOT)
    (command,) = [line for line in head if "accelerate launch" in line]
    assert command.startswith(f"# accelerate launch --config_file {name} ")
    assert "run_recbole.py" in command
    # A run takes its precision from its own key alone.
    assert config.mixed_precision == "no" or f"--precision={config.mixed_precision}" in command
