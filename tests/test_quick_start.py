"""ETEGRecLlama from the command line to its run directory and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_etegrec.cli import main
from recbole_etegrec.decoding import RANKERS
from recbole_etegrec.errors import UserError
from recbole_etegrec.evaluation.evaluate import evaluate
from recbole_etegrec.quick_start import run
from recbole_etegrec.runs.load import load_run
from tests.conftest import write_interactions
from tests.helpers import SMALL_MODEL, small_values

MODEL = "ETEGRecLlama"


def result_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "result.json").read_text())


def lines_of(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def run_tiny(tiny_data: str, run_dir: Path, saved: bool = True, **more) -> dict:
    values = small_values(tiny_data, run_dir=str(run_dir), **more)
    return run(MODEL, "tiny", config_dict=values, saved=saved)


@pytest.fixture(scope="module")
def finished(tiny_data, tmp_path_factory) -> tuple[dict, Path]:
    """The outcome of a run with all stages, and its directory."""
    run_dir = tmp_path_factory.mktemp("run") / "first"
    outcome = run_tiny(tiny_data, run_dir, sia_weight=0.01, psa_weight=0.01, warm_epochs=0)
    return outcome, run_dir


def test_run_leaves_a_whole_directory_when_it_ends(finished):
    outcome, run_dir = finished
    result = result_of(run_dir)
    assert result["test_result"] == outcome["test_result"]
    assert result["best_valid_result"] == outcome["best_valid_result"]
    assert result["best_valid_score"] == outcome["best_valid_result"]["ndcg@10"]
    assert (result["model"], result["dataset"], result["epochs"]) == (MODEL, "tiny", 3)
    assert set(result["test_result"]) == {
        f"{metric}@{k}" for metric in ("recall", "ndcg", "mrr") for k in (5, 10, 20)
    }
    assert {path.name for path in (run_dir / "best").iterdir()} == {
        "checksums.json",
        "model.safetensors",
        "model.json",
    }
    # The checkpoints that an unfinished run goes on from are gone.
    files = {"config.yaml", "metrics.jsonl", "result.json", "run.log"}
    files |= {"identity.json", "item_embedding.safetensors"}
    assert {path.name for path in run_dir.iterdir()} == files | {"best", "tensorboard"}
    stages = [(line["phase"], line.get("trains")) for line in lines_of(run_dir)]
    assert stages == [
        *[("pretraining", "tokenizer")] * 2,
        ("codes", None),
        ("alternation", "tokenizer"),
        ("alternation", "recommender"),
        ("final", "recommender"),
    ]


def test_run_gives_the_same_metrics_when_repeated_with_one_seed(finished, tiny_data, tmp_path):
    _, first = finished
    values = {"sia_weight": 0.01, "psa_weight": 0.01, "warm_epochs": 0}
    run_tiny(tiny_data, tmp_path / "again", embedding_cache=str(tmp_path / "cache"), **values)
    again, other = tmp_path / "again", tmp_path / "other"
    for key in ("best_valid_score", "best_valid_result", "test_result", "epochs", "seed"):
        assert result_of(again)[key] == result_of(first)[key]
    clock = {"seconds"}
    for one, two in zip(lines_of(first), lines_of(again), strict=True):
        assert {k: v for k, v in one.items() if k not in clock} == {
            k: v for k, v in two.items() if k not in clock
        }
    weights = "best/model.safetensors"
    assert (first / weights).read_bytes() == (again / weights).read_bytes()
    run_tiny(tiny_data, other, seed=1, **values)
    assert (first / weights).read_bytes() != (other / weights).read_bytes()


@pytest.mark.parametrize("ranking", ["beam", "exact"])
def test_run_trains_and_ranks_when_precision_is_bf16(ranking, tiny_data, tmp_path):
    outcome = run_tiny(tiny_data, tmp_path / "run", precision="bf16", ranking=ranking)
    assert 0 < outcome["test_result"]["recall@20"] <= 1
    weights = load_run(str(tmp_path / "run"))[1].recommender.state_dict()
    assert {value.dtype for value in weights.values()} == {torch.float32}
    epochs = lines_of(tmp_path / "run")[3:]
    assert [line["trains"] for line in epochs] == ["tokenizer", "recommender", "recommender"]
    for line in epochs:
        loss = "quantization" if line["trains"] == "tokenizer" else "recommendation"
        assert np.isfinite(line[loss])
        assert line["skipped"] == 0


@pytest.mark.parametrize("ranking", ["beam", "exact"])
def test_load_run_gives_the_test_metrics_when_evaluated_again(
    ranking, finished, tiny_data, tmp_path
):
    if ranking == "beam":
        outcome, run_dir = finished
    else:
        run_dir = tmp_path / "run"
        outcome = run_tiny(tiny_data, run_dir, ranking="exact", epochs=0)
    config, model, dataset, train_data, valid_data, test_data = load_run(str(run_dir))
    quiet = {"show_progress": False, "title": ""}
    tested = evaluate(model, test_data, train_data._dataset, config, **quiet)
    assert dict(tested) == outcome["test_result"]
    validated = evaluate(model, valid_data, train_data._dataset, config, **quiet)
    assert dict(validated) == outcome["best_valid_result"]
    assert dataset.item_num == 41
    kept = json.loads((run_dir / "best" / "model.json").read_text())
    assert model.codes.digest() == kept["codes"]
    assert len(model.codes.table[1:].unique(dim=0)) == 40


def test_load_run_takes_other_values_when_given(finished):
    _, run_dir = finished
    config, model, *_, test_data = load_run(str(run_dir), {"ranking": "exact"})
    assert config["ranking"] == "exact" and type(model.ranker) is RANKERS["exact"]
    (rows,) = [interaction for interaction, *_ in test_data]
    assert torch.isfinite(model.eval().full_sort_predict(rows)[:, 1:]).all()


def test_run_learns_the_walk_when_trained_a_little(tiny_data, tmp_path):
    values = {"tokenizer_epochs": 20, "epochs": 0, "finetune_epochs": 25, "stopping_step": 25}
    values |= {"finetune_learning_rate": 0.02, "max_tokens": 2000, "hidden_size": 32}
    outcome = run_tiny(tiny_data, tmp_path / "run", **values)
    # Chance is 10 of 40 for Recall@10; users mostly move on by one item.
    assert outcome["test_result"]["recall@10"] > 0.7
    assert outcome["test_result"]["ndcg@10"] > 0.4


def test_run_ranks_sampled_items_when_evaluation_is_sampled(tiny_data, tmp_path):
    values = {"eval_args": {"mode": "uni20"}, "topk": [5, 10, 20]}
    outcome = run_tiny(tiny_data, tmp_path / "run", epochs=0, **values)
    assert outcome["test_result"]["recall@20"] > outcome["test_result"]["recall@5"] > 0
    again = run_tiny(tiny_data, tmp_path / "again", epochs=0, **values)
    assert again["test_result"] == outcome["test_result"]


def test_run_writes_no_weights_when_not_saved(tiny_data, tmp_path):
    outcome = run_tiny(tiny_data, tmp_path / "run", saved=False, epochs=0)
    assert not (tmp_path / "run" / "best").exists()
    saved = run_tiny(tiny_data, tmp_path / "saved", saved=True, epochs=0)
    assert outcome["test_result"] == saved["test_result"]
    with pytest.raises(UserError, match="has no identity.json"):
        load_run(str(tmp_path / "run"))


@pytest.mark.parametrize(
    "epochs",
    [{"epochs": 0, "finetune_epochs": 0}, {"epochs": 1, "finetune_epochs": 0}],
)
def test_run_tests_the_model_when_no_epoch_would_be_validated(epochs, tiny_data, tmp_path):
    outcome = run_tiny(tiny_data, tmp_path / "run", **epochs)
    assert 0 <= outcome["best_valid_score"] <= 1
    assert 0 <= outcome["test_result"]["recall@10"] <= 1


@pytest.mark.parametrize("mode", ["valid_only", "test_only"])
def test_run_refuses_a_split_when_a_held_out_part_is_missing(mode, tiny_data, tmp_path, capsys):
    code = main(arguments(tiny_data, tmp_path, f"--eval_args={{'split':{{'LS':'{mode}'}}}}"))
    assert code == 2
    assert "must be LS: valid_and_test" in capsys.readouterr().err


def test_load_run_recommends_the_same_twice_when_the_model_has_dropout(tiny_data, tmp_path):
    run_tiny(tiny_data, tmp_path / "run", epochs=0, dropout=0.5, residual_dropout=0.5)
    _, model, *_, test_data = load_run(str(tmp_path / "run"))
    (rows,) = [interaction for interaction, *_ in test_data]
    first, second = model.ranker.best(rows, 10), model.ranker.best(rows, 10)
    assert torch.equal(first.items, second.items)
    assert torch.equal(first.scores, second.scores)


@pytest.mark.parametrize(
    "value",
    [
        "cycle_epochs=0",
        "eval_step=0",
        "psa_weight=-1",
        "learning_rate=abc",
        "tokenizer_learning_rate=0",
    ],
)
def test_run_refuses_numbers_when_they_make_no_sense(value, tiny_data, tmp_path, capsys):
    assert main(arguments(tiny_data, tmp_path, f"--{value}")) == 2
    assert f"error: {value.split('=')[0]} (" in capsys.readouterr().err


def test_run_takes_vectors_from_a_file_when_told_to(tiny_data, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "v.npy", rng.standard_normal((40, 7)))
    (tmp_path / "v.items").write_text("".join(f"i{n}\n" for n in range(40)))
    values = {"item_embedding": "file", "item_embedding_file": str(tmp_path / "v.npy")}
    outcome = run_tiny(tiny_data, tmp_path / "run", epochs=0, **values)
    model = load_run(str(tmp_path / "run"))[1]
    assert model.item_embedding.shape == (41, 7)
    assert outcome["test_result"]["recall@20"] > 0


# Bad input --------------------------------------------------------------------------------------


def arguments(data_path: str, tmp_path: Path, *more: str, dataset: str = "tiny") -> list[str]:
    """A command line of the small model."""
    values = {**SMALL_MODEL, "run_dir": tmp_path / "run", "embedding_cache": tmp_path / "cache"}
    given = {argument.partition("=")[0] for argument in more}
    pairs = [f"--{key}={value}" for key, value in values.items() if f"--{key}" not in given]
    return [f"--dataset={dataset}", f"--data_path={data_path}", *pairs, *more]


def refusal(capsys, run_dir: Path, command: list[str]) -> str:
    """The one line on stderr of a command that ends with 2 and before any training."""
    capsys.readouterr()
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert not (run_dir / "result.json").exists()
    metrics = run_dir / "metrics.jsonl"
    assert not metrics.exists() or metrics.read_text() == ""
    return line


def write_vectors(folder: Path, tokens: list[str], rows: np.ndarray) -> list[str]:
    np.save(folder / "v.npy", rows)
    (folder / "v.items").write_text("".join(f"{token}\n" for token in tokens))
    return ["--item_embedding=file", f"--item_embedding_file={folder}/v.npy"]


def test_main_names_count_and_items_when_vectors_are_missing(tiny_data, tmp_path, capsys):
    tokens = [f"i{n}" for n in range(31)]
    more = write_vectors(tmp_path, tokens, np.random.default_rng(0).standard_normal((31, 4)))
    line = refusal(capsys, tmp_path / "run", arguments(tiny_data, tmp_path, *more))
    assert "misses 9 of 40 items, first " in line
    names = line.split("first ")[1].split(":")[0].split(", ")
    assert len(names) == 5
    assert all(int(name[1:]) > 30 for name in names)


def test_main_names_the_item_when_a_vector_has_nan(tiny_data, tmp_path, capsys):
    rows = np.random.default_rng(0).standard_normal((40, 4))
    rows[12, 3] = np.nan
    more = write_vectors(tmp_path, [f"i{n}" for n in range(40)], rows)
    line = refusal(capsys, tmp_path / "run", arguments(tiny_data, tmp_path, *more))
    assert "1 rows with NaN or infinity, first for item 'i12'" in line


def test_main_names_both_numbers_when_vectors_and_tokens_differ(tiny_data, tmp_path, capsys):
    more = write_vectors(tmp_path, [f"i{n}" for n in range(40)], np.ones((38, 4)))
    line = refusal(capsys, tmp_path / "run", arguments(tiny_data, tmp_path, *more))
    assert "(38, 4)" in line
    assert "40 lines" in line


def test_main_names_the_file_when_there_are_no_vectors(tiny_data, tmp_path, capsys):
    more = ["--item_embedding=file", f"--item_embedding_file={tmp_path}/absent.npy"]
    line = refusal(capsys, tmp_path / "run", arguments(tiny_data, tmp_path, *more))
    assert "absent.npy" in line


def test_main_names_size_and_remedy_when_a_collision_group_is_too_large(
    tiny_data, tmp_path, capsys
):
    rows = np.ones((40, 4))
    rows[0] = 2
    more = write_vectors(tmp_path, [f"i{n}" for n in range(40)], rows)
    line = refusal(capsys, tmp_path / "run", arguments(tiny_data, tmp_path, *more))
    assert "39 items share their semantic codes" in line
    assert "set collision to sinkhorn" in line


def test_main_names_the_part_when_a_split_is_empty(tmp_path, capsys):
    write_interactions(tmp_path, "short", [[u, u + 1, u + 2] for u in range(8)])
    command = arguments(str(tmp_path), tmp_path, dataset="short")
    line = refusal(capsys, tmp_path / "run", command)
    assert "the valid part of short is empty" in line


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--code_length=1", "code_length"),
        ("--backbone=lama", "llama"),
        ("--alignment_pooling=first", "alignment_pooling"),
        ("--precision=fp8", "precision"),
        ("--topk=[5,10,50]", "num_beams"),
    ],
)
def test_main_names_the_key_when_its_value_cannot_be(
    argument, message, tiny_data, tmp_path, capsys
):
    command = arguments(tiny_data, tmp_path, argument)
    assert message in refusal(capsys, tmp_path / "run", command)
