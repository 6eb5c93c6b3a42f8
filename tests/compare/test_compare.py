"""Models compared by one command: what is run, what is reused, and what the table says."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from recbole_etegrec.cli import main
from recbole_etegrec.compare.command import Compared, compare, worker_environment
from recbole_etegrec.compare.measures import per_user_file, write_error, write_measures
from recbole_etegrec.compare.plan import Plan, PlannedRun, make_plan, read_overlay
from recbole_etegrec.compare.table import write_table
from recbole_etegrec.compare.worker import work
from recbole_etegrec.config import Config, properties_dir
from recbole_etegrec.errors import Interrupted, UserError
from tests.helpers import SMALL_MODEL

ABLATIONS = {
    "no_sia": {"sia_weight"},
    "no_psa": {"psa_weight"},
    "no_alignment": {"sia_weight", "psa_weight"},
    "no_alternation": {"schedule"},
    "no_end_to_end": {"schedule"},
    "fixed_codes": {"schedule", "finetune_epochs"},
    "paper_no_alternation": {"schedule"},
    "paper_fixed_codes": {"schedule", "finetune_epochs"},
    "paper_no_end_to_end": {"schedule", "finetune_epochs"},
    "psa_fixed": {"psa_weight", "psa_fixed_weight"},
    "paper_shared": {"codebook_update"},
    "paper_nearest_codes": {"code_slack"},
    "separate": {"codebook_update"},
    "tokenizer_only": {"codebook_update"},
    "mean_pooling": {"alignment_pooling"},
    "prefixes": {"training_rows"},
}


def arguments(data: str, out: Path, **more: str) -> dict[str, str]:
    """A command line, parsed, in which a run takes a moment."""
    small = {key: str(value) for key, value in SMALL_MODEL.items()}
    values = {"dataset": "tiny", "data_path": data, "embedding_cache": f"{data}/cache"}
    return {**small, **values, "out": str(out), "use_gpu": "False", **more}


def arguments_of_pop(data: str, out: Path) -> dict[str, str]:
    """The same of the model that takes the least time."""
    values = {"models": "Pop", "dataset": "tiny", "data_path": data, "out": str(out)}
    return {**values, "use_gpu": "False", "show_progress": "False"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """In the workers too: many small steps do not wait for each other on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def compared(tiny_data: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, str, dict]:
    """Pop and ETEGRecLlama that have run before, and FDSA, which lacks a feature of items.

    The plan, its table, and when the files of the first two were written, before and after.
    """
    out = tmp_path_factory.mktemp("out")
    values = arguments(tiny_data, out, models="Pop,ETEGRecLlama,FDSA", exclude_history="both")
    plan = make_plan(values)
    for run in plan.runs[:2]:
        work(run.config.inputs, run.path, plan.histories)
    before = times_of(plan)
    table, failed = compare(values)
    assert failed == [plan.runs[2].path.name]
    return plan, table, {"before": before, "after": times_of(plan)}


def times_of(plan: Plan) -> dict[Path, int]:
    files = [file for run in plan.runs[:2] for file in run.path.rglob("*") if file.is_file()]
    return {file: file.stat().st_mtime_ns for file in files}


@pytest.mark.slow
def test_compare_reuses_a_run_when_it_is_finished(compared):
    _, _, times = compared
    assert times["before"] == times["after"]


@pytest.mark.slow
def test_compare_has_a_row_with_the_error_when_a_model_fails(compared):
    plan, table, _ = compared
    assert table.count("| FDSA | none; seed 2020: model FDSA: 'class' is missing |") == 2
    rows = json.loads((plan.out / "comparison.json").read_text())["tables"]["kept"]
    assert [(row["model"], row["seeds"]) for row in rows] == [
        ("Pop", [2020]),
        ("ETEGRecLlama", [2020]),
        ("FDSA", []),
    ]


@pytest.mark.slow
def test_compare_has_the_numbers_of_the_runs_when_tested_as_they_were_validated(compared):
    plan, table, _ = compared
    rows = json.loads((plan.out / "comparison.json").read_text())["tables"]["kept"]
    with (plan.out / "comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    for row, line, run in zip(rows[:2], lines, plan.runs, strict=False):
        result = json.loads((run.path / "result.json").read_text())
        found = {name: value["mean"] for name, value in row["columns"].items()}
        for name, value in result["test_result"].items():
            assert found[name] == value
            assert float(line[name]) == value
            assert f"{value:.4f}" in table
        assert found["valid NDCG@10"] == result["best_valid_score"]
        assert found["seconds"] == result["seconds"]
        assert found["memory_gib"] > 0.1
    assert rows[0]["columns"]["parameters"]["mean"] == 1  # of Pop


@pytest.mark.slow
def test_compare_tests_with_and_without_history_when_both_are_wanted(compared):
    plan, table, _ = compared
    assert plan.histories == ["kept", "excluded"]
    tables = json.loads((plan.out / "comparison.json").read_text())["tables"]
    for kept, excluded in zip(tables["kept"][:2], tables["excluded"], strict=False):
        # Fewer items are ranked, so no user's own item is lower.
        assert excluded["columns"]["recall@20"]["mean"] > kept["columns"]["recall@20"]["mean"]
        assert excluded["columns"]["seconds"] == kept["columns"]["seconds"]  # not trained anew


@pytest.mark.slow
def test_per_user_values_have_the_metric_as_their_mean_when_a_run_is_measured(compared):
    plan, table, _ = compared
    users = []
    for run in plan.runs[:2]:
        measures = json.loads((run.path / "measures.json").read_text())
        for history in plan.histories:
            with np.load(per_user_file(run.path, history)) as file:
                users.append(list(file["users"]))
                expected = measures["test_result"][history]["ndcg@10"]
                assert file["values"].mean() == pytest.approx(expected, abs=6e-5)  # it is rounded
        assert measures["pairs"] == 60
    assert "All were tested on the same 60 pairs" in table
    assert all(names == users[0] for names in users)
    assert set(users[0]) == {f"u{number}" for number in range(60)}


@pytest.mark.slow
def test_compare_goes_on_with_a_run_when_it_was_interrupted(tiny_data, tmp_path):
    values = arguments(tiny_data, tmp_path, models="ETEGRecLlama", finetune_epochs="6")
    (run,) = make_plan(values).runs

    def interrupt() -> None:
        while not (run.path / "last").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted, match="the same command goes on"):
        compare(values)
    assert "| ETEGRecLlama | none |" in (tmp_path / "comparison.md").read_text()
    assert not (run.path / "result.json").exists()
    begun = (run.path / "metrics.jsonl").read_text()

    assert "| ETEGRecLlama | 2020 |" in compare(values).table
    whole = (run.path / "metrics.jsonl").read_text()
    assert begun and whole.startswith(begun) and len(whole) > len(begun)


def test_workers_share_the_cores_when_several_run_at_a_time(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert "OMP_NUM_THREADS" not in worker_environment(1, None)
    assert worker_environment(8, "3")["OMP_NUM_THREADS"] == "2"
    assert worker_environment(8, "3")["CUDA_VISIBLE_DEVICES"] == "3"
    assert worker_environment(32, None)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert worker_environment(8, None)["OMP_NUM_THREADS"] == "5"


def test_compare_refuses_a_folder_with_files_of_others(tiny_data, tmp_path):
    (tmp_path / "comparison.csv").write_text("mine")
    with pytest.raises(UserError, match=r"holds files that are no comparison's \(comparison.csv\)"):
        compare(arguments_of_pop(tiny_data, tmp_path))
    assert (tmp_path / "comparison.csv").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def started(values: dict[str, str]) -> subprocess.Popen:
    """The comparison in a process of its own."""
    code = "import sys; from recbole_etegrec.cli import main; sys.exit(main(sys.argv[1:]))"
    line = ["compare", *(f"--{key}={value}" for key, value in values.items())]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-c", code, *line], **quiet)


def compared_after_workers(values: dict[str, str]) -> Compared:
    """The comparison again, once the workers of one that was killed have ended."""
    until = time.monotonic() + 60
    while True:
        try:
            return compare(values)
        except UserError as error:
            assert "another process is writing to it" in str(error)
            assert time.monotonic() < until
            time.sleep(0.2)


@pytest.mark.slow
def test_compare_is_refused_while_another_or_its_worker_lives_and_goes_on_after(
    tiny_data, tmp_path
):
    values = arguments_of_pop(tiny_data, tmp_path / "out")
    (run,) = make_plan(values).runs
    other = started(values)
    try:
        while not (run.path / "config.yaml").exists():  # its worker has begun
            assert other.poll() is None
            time.sleep(0.05)
        with pytest.raises(UserError, match=f"out {tmp_path / 'out'}: another process is writing"):
            compare(values)
    finally:
        other.kill()
        other.wait()
    table, failed = compared_after_workers(values)
    assert not failed and "| Pop | 2020 |" in table


@pytest.mark.slow
def test_compare_has_the_same_results_when_it_was_killed_before(tiny_data, tmp_path):
    def results(out: Path) -> list[dict]:
        rows = json.loads((out / "comparison.json").read_text())["tables"]["kept"]
        timed = ("seconds", "memory_gib", "users_per_second")
        return [
            {name: value for name, value in row["columns"].items() if name not in timed}
            for row in rows
        ]

    begun = time.monotonic()
    whole = arguments_of_pop(tiny_data, tmp_path / "whole")
    assert started(whole).wait() == 0
    seconds = time.monotonic() - begun
    for seed in range(2):
        values = arguments_of_pop(tiny_data, tmp_path / str(seed))
        killed = started(values)
        time.sleep(random.Random(seed).uniform(0.2, 1) * seconds)
        killed.kill()
        killed.wait()
        assert not compared_after_workers(values).failed
        assert results(Path(values["out"])) == results(tmp_path / "whole")


@pytest.mark.slow
def test_compare_ends_with_1_when_a_worker_is_killed(tiny_data, tmp_path, monkeypatch, capfd):
    popen = subprocess.Popen

    def killed(*positional, **named):
        process = popen(*positional, **named)
        process.kill()
        return process

    monkeypatch.setattr(subprocess, "Popen", killed)
    values = arguments_of_pop(tiny_data, tmp_path / "out")
    assert main(["compare", *(f"--{key}={value}" for key, value in values.items())]) == 1
    printed = capfd.readouterr()
    assert "| Pop | none; seed 2020: ended by SIGKILL" in printed.out
    assert printed.err.splitlines()[-1].startswith("error: 1 of the runs failed: Pop-2020-")


@pytest.mark.slow
def test_compare_gives_the_same_table_when_runs_go_side_by_side(tiny_data, tmp_path, monkeypatch):
    popen = subprocess.Popen
    started: list[subprocess.Popen] = []
    running: dict[str, list[int]] = {"1": [], "2": []}  # by jobs: other workers as one starts
    both = threading.Barrier(2, timeout=60)

    def watched(*positional, **named):
        if jobs == "2":
            both.wait()  # breaks where the second is not asked for before the first has ended
        running[jobs].append(sum(process.poll() is None for process in started))
        started.append(popen(*positional, **named))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", watched)
    rows = []
    for jobs in running:
        values = arguments(tiny_data, tmp_path / jobs, models="Pop,ETEGRecLlama", jobs=jobs)
        compare(values)
        table = json.loads((tmp_path / jobs / "comparison.json").read_text())["tables"]["kept"]
        rows.append([(row["model"], row["columns"]["ndcg@10"]["mean"]) for row in table])
    assert rows[0] == rows[1]
    assert running["1"] == [0, 0] and len(running["2"]) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"models": "Pop,Popp"}, "unknown model 'Popp'; did you mean 'Pop'?"),
        ({"models": "Pop", "code_num": "4"}, "unknown config key 'code_num', for each of these"),
        ({"models": "Pop,ETEGRecLlama", "num_beam": "4"}, "did you mean 'num_beams'?"),
        (
            {"models": "Pop,ETEGRecLlama", "num_beams": "4", "ranking": "beam"},
            "must be >= max(topk) (20)",
        ),
        ({"models": "Pop", "ablations": "no_sai"}, "did you mean 'no_sia'?"),
        ({"models": "Pop,SASRec+tunned"}, "must be one of tuned; did you mean 'tuned'?"),
        ({"models": "SASRec+no_sia"}, "SASRec+no_sia: no overlay 'no_sia'; must be one of tuned"),
        ({"models": "Pop+tuned"}, "Pop+tuned: no overlay 'tuned'; there is none for this model"),
        ({"models": "SASRec+"}, "SASRec+: no overlay ''; must be one of tuned"),
        ({"models": "SASREC+tuned"}, "unknown model 'SASREC'"),
        ({"models": "Pop", "seeds": "1,two"}, "seeds (1,two): must be whole numbers"),
        ({"models": "Pop", "jobs": "0"}, "jobs (0): must be a whole number above 0"),
        ({"models": "Pop", "seed": "1"}, "--seed is not taken: give --seeds"),
        ({"models": "Pop", "dataset": "nothing"}, "dataset 'nothing': no file"),
        ({"models": "Pop", "exclude_history": "None"}, "Pop: exclude_history (None) must be"),
        ({"models": "DeepFM"}, "DeepFM: it classifies labelled pairs, and cannot be compared"),
        ({}, "--models=A,B,... missing"),
        (
            {"models": "Pop", "exclude_history": "both", "eval_args": "{'mode': 'uni20'}"},
            "exclude_history (both) needs eval_args mode full",
        ),
    ],
)
def test_compare_is_refused_before_any_run_when_input_is_bad(
    tiny_data, tmp_path, capsys, more, message
):
    values = {"dataset": "tiny", "data_path": tiny_data, "out": str(tmp_path / "out"), **more}
    assert main(["compare", *(f"--{key}={value}" for key, value in values.items())]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_plan_applies_a_key_to_the_models_that_know_it_when_others_do_not(tiny_data, tmp_path):
    values = {"dataset": "tiny", "data_path": tiny_data, "out": str(tmp_path)}
    plan = make_plan({**values, "models": "Pop,ETEGRecLlama", "num_beams": "30", "epochs": "4"})
    pop, llama = (run.config for run in plan.runs)
    assert (pop["num_beams"], llama["num_beams"]) == (None, 30)
    assert (pop["epochs"], llama["epochs"]) == (4, 4)
    assert plan.notes == ["for ETEGRecLlama only: num_beams"]


def test_plan_ranks_history_alike_when_no_rule_is_given(tiny_data, tmp_path):
    values = {"dataset": "tiny", "data_path": tiny_data, "out": str(tmp_path)}
    plan = make_plan({**values, "models": "BPR,SASRec"})
    assert [run.config["exclude_history"] for run in plan.runs] == [False, False]
    assert plan.histories == ["kept"]


def test_plan_names_a_run_by_what_changes_its_result_when_arguments_differ(tiny_data, tmp_path):
    values = {"dataset": "tiny", "data_path": tiny_data, "out": str(tmp_path), "models": "BPR"}

    def name(**more: str) -> str:
        return make_plan({**values, **more}).runs[0].path.name

    assert name().startswith("BPR-2020-")
    assert name() == name(show_progress="False") == name(state="ERROR")
    assert len({name(), name(epochs="7"), name(learning_rate="0.5"), name(seeds="3")}) == 4


def test_plan_adds_a_row_an_ablation_when_they_are_named(tiny_data, tmp_path):
    values = {"dataset": "tiny", "data_path": tiny_data, "out": str(tmp_path), "seeds": "1,2"}
    plan = make_plan({**values, "models": "Pop", "ablations": "no_sia", "sia_weight": "0.5"})
    assert [(run.label, run.config["seed"]) for run in plan.runs] == [
        ("Pop", 1),
        ("Pop", 2),
        ("ETEGRecLlama + no_sia", 1),
        ("ETEGRecLlama + no_sia", 2),
    ]
    assert plan.runs[2].config["sia_weight"] == 0.0  # an ablation wins


def test_plan_gives_overlays_to_their_models_alone_when_they_are_named(tiny_data, tmp_path):
    values = {"dataset": "tiny", "data_path": tiny_data, "out": str(tmp_path)}
    models = "SASRec, SASRec + tuned,ETEGRec+no_sia,ETEGRecLlama+no_sia"
    plan = make_plan({**values, "models": models, "ablations": "no_sia"})
    assert [run.label for run in plan.runs] == [
        "SASRec",
        "SASRec + tuned",
        "ETEGRec + no_sia",
        "ETEGRecLlama + no_sia",
    ]
    assert plan.runs[1].path.name.startswith("SASRec+tuned-2020-")
    tuned = plan.runs[1].config.inputs
    alone = Config("SASRec", "tiny", ["tuned/SASRec"]).inputs
    for key, value in read_overlay("SASRec", "tuned").items():
        assert tuned[key] == alone[key] == value
    assert plan.runs[2].config["sia_weight"] == 0.0


@pytest.mark.parametrize("model", ["SASRec", "FDSA"])
def test_tuned_overlay_has_keys_of_its_model_alone_when_it_is_read(model):
    tuned = read_overlay(model, "tuned")
    assert tuned
    assert Config(model, "tiny", [f"tuned/{model}"]).inputs.items() >= tuned.items()


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_changes_its_keys_alone_when_it_is_an_overlay(name):
    schedule = ["schedule/paper"] if name.startswith("paper_") else []
    plain = Config("ETEGRecLlama", "tiny", schedule).inputs
    changed = Config("ETEGRecLlama", "tiny", [*schedule, f"ablation/{name}"]).inputs
    assert {key for key in plain if plain[key] != changed[key]} == ABLATIONS[name]
    assert read_overlay("ETEGRecLlama", name).keys() == ABLATIONS[name]


def test_overlays_keep_up_with_the_defaults_when_those_have_changed():
    plain = Config("ETEGRecLlama", "tiny").inputs
    assert Config("ETEGRecLlama", "tiny", ["schedule/short"]).inputs == plain
    for schedule, overlays in (
        ([], ["fixed_codes"]),
        (["schedule/paper"], ["paper_fixed_codes", "paper_no_end_to_end"]),
    ):
        base = Config("ETEGRecLlama", "tiny", schedule).inputs
        of_recommender = base["epochs"] - base["epochs"] // base["cycle_epochs"]
        for name in overlays:
            of_final = read_overlay("ETEGRecLlama", name)["finetune_epochs"]
            assert of_final == of_recommender + base["finetune_epochs"], name


def test_ablations_are_all_known_here_when_the_folder_is_listed():
    files = (properties_dir() / "ablation").glob("*.yaml")
    assert {file.stem for file in files} == ABLATIONS.keys()


def leave_result(run: PlannedRun, score: float, users: list[float], digest: str = "a") -> None:
    """What a finished run leaves that the table reads."""
    measures = {"parameters": 7, "pairs": len(users), "digest": digest}
    write_measures(run.path, {**measures, "test_result": {"kept": {"ndcg@10": score}}})
    result = {"model": "Pop", "dataset": "d", "best_valid_score": score, "epochs": 3}
    result |= {"best_valid_result": None, "test_result": {}, "seconds": 2.0, "versions": {}}
    (run.path / "result.json").write_text(json.dumps(result))
    names = [f"u{number}" for number in range(len(users))]
    np.savez(per_user_file(run.path, "kept"), users=names, values=users)


def test_table_has_mean_deviation_and_paired_test_when_seeds_are_several(tiny_data, tmp_path):
    values = {"dataset": "tiny", "data_path": tiny_data, "out": str(tmp_path), "seeds": "1,2"}
    plan = make_plan({**values, "models": "Pop,BPR,SASRec"})
    pop, pop_again, bpr, bpr_again, sasrec, _ = plan.runs
    leave_result(pop, 0.1, [0.0, 0.1, 0.2, 0.1])
    leave_result(pop_again, 0.3, [0.2, 0.3, 0.4, 0.3])
    leave_result(bpr, 0.4, [0.2, 0.5, 0.4, 0.5])
    leave_result(bpr_again, 0.4, [0.2, 0.5, 0.4, 0.5])
    write_error(sasrec.path, "broken\nat once")
    table = write_table(plan)
    rows = json.loads((tmp_path / "comparison.json").read_text())["tables"]["kept"]
    assert rows[0]["columns"]["ndcg@10"]["mean"] == pytest.approx(0.2)
    assert rows[0]["columns"]["ndcg@10"]["std"] == pytest.approx(0.02**0.5)
    # Differences .1 .3 .1 .3 have mean .2 and standard error .0577: t = 3.46 with 3 degrees.
    assert rows[0]["p"] == pytest.approx(0.0405, abs=1e-4)
    assert "| Pop | 1, 2 | 0.2000 ± 0.1414 | 0.2000 ± 0.1414 | **7** ± 0 |" in table
    assert "| BPR | 1, 2 | **0.4000** ± 0.0000 |" in table
    assert "| SASRec | none; seed 1: broken at once |" in table


def test_table_has_plots_and_who_beats_our_models_when_baselines_are_better(tiny_data, tmp_path):
    values = {"dataset": "tiny", "data_path": tiny_data, "out": str(tmp_path)}
    plan = make_plan({**values, "models": "Pop,BPR,ETEGRecLlama"})
    for run, users in zip(
        plan.runs, ([0.3, 0.5, 0.4, 0.6], [0.1] * 4, [0.2, 0.3, 0.3, 0.4]), strict=True
    ):
        leave_result(run, sum(users) / 4, users)
    table = write_table(plan)
    # Differences .1 .2 .1 .2 have mean .15 and standard error .0289: t = 5.2 with 3 degrees.
    assert "- ETEGRecLlama: beaten on test NDCG@10 by Pop (significant, p = 0.014)." in table
    assert f"--models=Pop,BPR,ETEGRecLlama`\n- Seeds: {plan.runs[0].config['seed']}" in table
    for name in ("kept_ndcg@10.svg", "kept_seconds.svg"):
        assert f"(plots/{name})" in table
        root = ElementTree.parse(tmp_path / "plots" / name).getroot()
        assert root.tag.endswith("svg") and "var(" not in (tmp_path / "plots" / name).read_text()


def test_table_warns_when_models_were_tested_on_other_pairs(tiny_data, tmp_path):
    values = {"dataset": "tiny", "data_path": tiny_data, "out": str(tmp_path)}
    plan = make_plan({**values, "models": "Pop,BPR"})
    leave_result(plan.runs[0], 0.1, [0.0, 0.2], "a")
    leave_result(plan.runs[1], 0.2, [0.4, 0.1, 0.1], "b")
    warning = "**Not comparable**: seed 2020 has other pairs of user and item for"
    assert f"{warning}: Pop (2 pairs); BPR (3 pairs)." in write_table(plan)


def test_plan_refuses_when_it_is_started_by_a_launcher(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start it without a launcher"):
        make_plan({"dataset": "tiny", "data_path": tiny_data, "out": str(tmp_path)})


def test_compare_is_refused_when_general_models_rank_once_for_several_lines(tmp_path):
    (tmp_path / "d").mkdir()
    for part in ("train", "valid", "test"):
        lines = [f"u\ti{n}\t{n}" for n in range(1 if part == "valid" else 2)]
        text = "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *lines]) + "\n"
        (tmp_path / "d" / f"d.{part}.inter").write_text(text)
    values = {"dataset": "d", "models": "BPR,SASRec", "data_path": str(tmp_path)}
    values |= {"benchmark_filename": "[train,valid,test]", "out": str(tmp_path / "out")}
    with pytest.raises(UserError, match="BPR: it ranks once for a user, and 'u' of d.test.inter"):
        make_plan(values)
    make_plan({**values, "models": "SASRec,GRU4Rec"})
