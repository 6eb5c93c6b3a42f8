"""`recommend` and `explain` on the directory of a run: users, formats, interruptions, refusals."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_etegrec.cli import main
from recbole_etegrec.errors import Interrupted, UserError
from recbole_etegrec.evaluation.evaluate import collect_rankings
from recbole_etegrec.inference import command
from recbole_etegrec.inference.output import PartedFile
from recbole_etegrec.quick_start import run
from recbole_etegrec.runs.load import load_run
from tests.helpers import small_values

FORMATS = ("csv", "jsonl", *(["parquet"] if find_spec("pyarrow") else []))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The directory of a short run on the quieter users of ml-100k."""
    folder = tmp_path_factory.mktemp("inference")
    values = small_values("", run_dir=str(folder / "run"), embedding_cache=str(folder / "cache"))
    del values["data_path"]
    values |= {"code_num": 64, "collision": "sinkhorn", "eval_batch_size": 16}
    values |= {"epochs": 2, "user_inter_num_interval": "[0,24]", "finetune_epochs": 0}
    run("ETEGRecLlama", "ml-100k", config_dict=values)
    return folder / "run"


@pytest.fixture(scope="module")
def loaded(finished) -> tuple:
    return load_run(str(finished))


@pytest.fixture(scope="module")
def titles() -> dict[str, str]:
    import recbole

    path = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.item"
    with path.open() as lines:
        rows = csv.reader(lines, delimiter="\t")
        next(rows)
        return {row[0]: row[1] for row in rows}


def written(path: Path) -> list[tuple]:
    """The rows of a file, typed alike for all formats."""
    if path.suffix == ".csv":
        types = {"user": str, "item": str}
        table = pd.read_csv(path, dtype=types, float_precision="round_trip")
    elif path.suffix == ".jsonl":
        table = pd.DataFrame(json.loads(line) for line in path.read_text().splitlines())
    else:
        table = pd.read_parquet(path)
    assert list(table) == ["user", "rank", "item", "title", "log_probability"]
    return list(table.itertuples(index=False, name=None))


def recommended(finished: Path, out: Path, *arguments: str) -> list[tuple]:
    assert main(["recommend", str(finished), *arguments, f"--out={out}"]) == 0
    return written(out)


@pytest.mark.slow
@pytest.mark.parametrize("split", ["valid", "test"])
@pytest.mark.parametrize("exclude", ["True", "False"])
def test_recommend_writes_what_the_evaluator_scored_when_a_split_is_named(
    split, exclude, finished, titles, tmp_path
):
    values = {"exclude_history": exclude}
    config, model, dataset, train, *held_out = load_run(str(finished), values)
    loader = held_out[["valid", "test"].index(split)]
    config["metrics"] = ["Recall", "ItemCoverage"]
    items = collect_rankings(model, loader, train._dataset, config).get("rec.items")
    scores = [
        model.ranker.score_all(interaction, excluded).topk(20).values
        for interaction, excluded, *_ in loader
    ]
    users = loader._dataset.inter_feat["user_id"].numpy()
    tokens = dataset.field2id_token
    expected = [
        (tokens["user_id"][user], rank, tokens["item_id"][item], titles[tokens["item_id"][item]])
        for user, ranking in zip(users, items.numpy(), strict=True)
        for rank, item in enumerate(ranking, start=1)
    ]
    rows = recommended(
        finished,
        tmp_path / f"top.{FORMATS[-1]}",
        "--all",
        "--k=20",
        f"--split={split}",
        f"--exclude_history={exclude}",
    )
    assert [row[:-1] for row in rows] == expected
    assert [row[-1] for row in rows] == [x for batch in scores for x in batch.flatten().tolist()]
    assert len(users) > 64  # more than one part


def test_recommend_writes_the_same_rows_when_the_format_is_another(finished, tmp_path):
    rows = [recommended(finished, tmp_path / f"top.{name}", "--all", "--k=3") for name in FORMATS]
    assert len(rows[0]) == 3 * len({row[0] for row in rows[0]})
    assert all(others == rows[0] for others in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"top.{name}" for name in FORMATS]


@pytest.mark.parametrize("name", FORMATS)
def test_recommend_goes_on_when_it_was_interrupted(name, finished, tmp_path, monkeypatch, capsys):
    recommended(finished, tmp_path / f"unbroken.{name}", "--all", "--k=4")
    ranked = []

    def rank(*arguments):
        if len(ranked) == 1:
            ranked.append("stopped")
            raise KeyboardInterrupt
        ranked.append(arguments[2][0])
        return own(*arguments)

    own = command.rank
    monkeypatch.setattr(command, "rank", rank)
    out = tmp_path / f"top.{name}"
    arguments = ["recommend", str(finished), "--all", f"--out={out}"]
    assert main([*arguments, "--k=4"]) == 128 + signal.SIGINT
    assert "stopped after 64 of" in capsys.readouterr().err
    assert not out.exists() and out.with_name(f"top.{name}.parts").is_dir()
    assert main([*arguments, "--k=5"]) == 2
    assert "another k: repeat that one, or delete" in capsys.readouterr().err
    assert main([*arguments, "--k=4"]) == 0
    assert ranked[:3] == [0, "stopped", 64]  # no part is ranked twice
    assert len(ranked) == len(set(ranked))
    assert out.read_bytes() == (tmp_path / f"unbroken.{name}").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"top.{name}", f"unbroken.{name}"]


def test_recommend_keeps_a_former_file_when_it_is_interrupted(finished, tmp_path, monkeypatch):
    out = tmp_path / "top.csv"
    out.write_text("former")
    monkeypatch.setattr(PartedFile, "join", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Interrupted):
        list(command.recommend_command(str(finished), {"all": "True", "out": str(out)}))
    assert out.read_text() == "former"
    monkeypatch.undo()
    assert len(recommended(finished, out, "--all")) > 1000


def test_recommend_ranks_the_users_asked_for_in_their_order(finished, loaded, tmp_path, capsys):
    users = loaded[2].field2id_token["user_id"][[9, 3, 70]].tolist()
    every = recommended(finished, tmp_path / "all.jsonl", "--all")
    asked = tmp_path / "users.txt"
    asked.write_text("\n".join([*users, "", "nobody", users[0]]) + "\n")
    capsys.readouterr()
    some = recommended(finished, tmp_path / "some.jsonl", f"--users-file={asked}")
    captured = capsys.readouterr()
    assert captured.err == "left out, not in ml-100k: nobody\n"
    assert captured.out == f"{tmp_path}/some.jsonl: 3 users, 10 items each at most\n"
    expected = [row for user in users for row in every if row[0] == user]
    assert [row[:4] for row in some] == [row[:4] for row in expected]
    assert np.allclose([row[4] for row in some], [row[4] for row in expected], atol=1e-5, rtol=0)
    named = recommended(finished, tmp_path / "named.jsonl", f"--users={','.join(users)}")
    assert named == some


def test_recommend_prints_a_table_when_no_file_is_named(finished, titles, capsys):
    arguments = ["recommend", str(finished), "--history=50,181,174", "--k=30"]
    assert main([*arguments, "--exclude_history=False"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["user", "rank", "item", "score", "title"]
    assert [int(line.split()[0]) for line in lines] == list(range(1, 31))
    for line in lines:
        _, item, _, title = line.split(maxsplit=3)
        assert titles[item].startswith(title.removesuffix("..."))
    assert main([*arguments, "--exclude-history"]) == 0
    removed = capsys.readouterr().out.splitlines()[1:]
    assert {"50", "181", "174"}.isdisjoint(line.split()[1] for line in removed)


def test_explain_follows_the_first_recommendation_when_no_item_is_named(finished, loaded, capsys):
    user = loaded[2].field2id_token["user_id"][5]
    assert main(["recommend", str(finished), f"--users={user}", "--k=2"]) == 0
    first, second = (line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert main(["explain", str(finished), f"--user={user}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["item", first[2]]
    assert lines[1] == f"log p {first[3]}"
    assert main(["explain", str(finished), f"--user={user}", f"--item={second[2]}"]) == 0
    assert f"log p {second[3]}" in capsys.readouterr().out
    assert main(["explain", str(finished), "--history=50,181", "--item=174"]) == 0
    assert capsys.readouterr().out.startswith("item 174 Raiders of the Lost Ark\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recommend"], "expected the directory of a run"),
        (["recommend", "{run}"], "give one of --users, --users-file, --all and --history"),
        (["recommend", "{run}", "--all", "--users=1"], "give one of"),
        (["recommend", "{run}", "--users=x,y"], "none is in ml-100k: x, y"),
        (["recommend", "{run}", "--users=x", "--split=test"], "none is among the test users: x"),
        (["recommend", "{run}", "--users-file=no/file"], "no/file: No such file"),
        (["recommend", "{run}", "--history=50,x,y"], "does not know: x, y"),
        (["recommend", "{run}", "--history=,"], "is empty"),
        (["recommend", "{run}", "--history=50", "--split=test"], "for users of the dataset"),
        (["recommend", "{run}", "--all", "--k=0"], "k (0): must be a whole number"),
        (["recommend", "{run}", "--all", "--k=ten"], "k (ten)"),
        (["recommend", "{run}", "--all", "--split=train"], "split (train): valid or test"),
        (["recommend", "{run}", "--all", "--out=top.txt"], "must end in one of .csv, .jsonl, "),
        (["recommend", "{run}", "--all", "--out=no/top.csv"], "no/top.csv: cannot be written"),
        (["recommend", "{run}", "--all", "--num_bems=3"], "did you mean 'num_beams'?"),
        (["explain", "{run}", "--item=50"], "give one of --user and --history"),
        (["explain", "{run}", "--user=x"], "none is in ml-100k: x"),
        (["explain", "{run}", "--history=50", "--item=x"], "does not know: x"),
    ],
)
def test_command_is_refused_in_one_line_when_input_is_bad(arguments, message, finished, capsys):
    assert main([argument.format(run=finished) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    error = captured.err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_command_is_refused_when_a_run_has_no_model_to_use(finished, tmp_path, capsys):
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    shutil.copy(finished / "config.yaml", unfinished)
    assert main(["recommend", str(unfinished), "--all"]) == 2
    assert "no best/" in capsys.readouterr().err
    (unfinished / "config.yaml").write_text("model: BPR\ndataset: ml-100k\n")
    assert main(["explain", str(unfinished), "--history=1"]) == 2
    assert "a run of BPR; name a run of ETEGRecLlama, " in capsys.readouterr().err


def test_recommend_says_what_to_install_when_parquet_cannot_be_written(
    finished, monkeypatch, capsys
):
    monkeypatch.setattr("recbole_etegrec.inference.output.find_spec", lambda _: None)
    assert main(["recommend", str(finished), "--all", "--out=top.parquet"]) == 2
    assert "recbole-etegrec[parquet]" in capsys.readouterr().err


def test_load_run_is_refused_when_the_shapes_are_others(finished):
    with pytest.raises(UserError, match="codebooks of .*: keep the dataset, its filters") as error:
        load_run(str(finished), {"e_dim": 24})
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_several_processes_write_what_one_does(finished, tmp_path):
    root = Path(__file__).parents[2]
    script = tmp_path / "command.py"
    script.write_text("import sys\nfrom recbole_etegrec.cli import main\nsys.exit(main())\n")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port=0"]
    launch += ["--config_file", str(root / "properties" / "accelerate" / "cpu_2.yaml")]
    arguments = ["recommend", str(finished), "--all", "--k=3"]
    for name, launcher in (("one.csv", [sys.executable]), ("two.csv", launch)):
        command = [*launcher, str(script), *arguments, f"--out={tmp_path / name}"]
        environment = {**os.environ, "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[:3000]
        assert done.stdout.count("users, 3 items each at most") == 1
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
