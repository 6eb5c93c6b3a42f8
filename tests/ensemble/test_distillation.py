"""A model that learns from the scores of an ensemble."""

import json
import shutil

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_etegrec import load_run, run
from recbole_etegrec.data.padding import pad_batch
from recbole_etegrec.errors import UserError
from recbole_etegrec.quick_start import check
from recbole_etegrec.runs.teaching import FOLDER, give_teacher
from recbole_etegrec.storage.run_directory import RunDirectory
from tests.ensemble.test_ensemble import QUICK, joined, runs  # noqa: F401
from tests.helpers import small_config, small_data, small_values

LEARNS = {
    **QUICK,
    "item_head": True,
    "candidates": 20,
    "distill_candidates": 8,
    "distill_weight": 3.0,
}


@pytest.fixture(scope="module")
def student(joined, tiny_data):  # noqa: F811
    values = {**LEARNS, "distill_from": str(joined), "run_dir": str(joined.parent / "student")}
    run("ETEGRecLlama", "tiny", config_dict=small_values(tiny_data, **values))
    return joined.parent / "student"


def test_student_is_trained_by_the_teacher_and_used_without_it(student, joined):  # noqa: F811
    lines = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line.get("trains") == "recommender"]
    assert epochs and all(line["distillation"] > 0 for line in epochs)
    assert epochs[-1]["distillation"] < epochs[0]["distillation"]
    assert epochs[-1]["code_distillation"] < epochs[0]["code_distillation"]
    hidden = joined.rename(joined.with_name("hidden"))
    try:
        load_run(str(student))
    finally:
        hidden.rename(joined)


def test_teacher_scores_each_target_after_its_own_history(student, joined, tiny_data):  # noqa: F811
    config = small_config(tiny_data, **LEARNS, distill_from=str(joined))
    dataset, loaders = small_data(config)
    (folder,) = (joined / FOLDER).iterdir()
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    loader = loaders.train
    give_teacher(config, loader, dataset.identity)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before  # made once
    _, model, *_ = load_run(str(joined))
    loader.draw(3)
    (batch,) = next(iter(loader))
    assert batch.taught_items.shape == (len(batch.targets), 8)
    # The window's first target follows its first item, unless the window was cut.
    starts = set(loader.whole.start.tolist())
    rows = loader.steps[0]
    width = batch.items.shape[1] - 1
    for row in [r for r in range(len(rows)) if int(loader.windows.start[rows[r]]) in starts][:3]:
        number = int((batch.target_index // width == row).nonzero()[0])
        place = int(batch.target_index[number]) - row * width
        history = batch.items[row, : place + 1].unsqueeze(0)
        asked = Interaction(
            {"item_id_list": history, "item_length": torch.tensor([history.shape[1]])}
        )
        best = model.ranker.best(asked, 8)
        assert batch.taught_items[number].tolist() == best.items[0].tolist()
        np.testing.assert_allclose(
            batch.taught_scores[number], best.scores[0] / model.ranker.mass, atol=1e-4
        )
    padded = pad_batch(batch, loader.max_items, dataset.item_num)
    real = padded.real_targets
    assert torch.equal(padded.taught_items[real], batch.taught_items)


def test_teacher_says_what_comes_after_the_last_items(joined, tiny_data, tmp_path):  # noqa: F811
    values = {**LEARNS, "distill_from": str(joined), "distill_ends": True}
    config = small_config(tiny_data, **values)
    dataset, loaders = small_data(config)
    loader = loaders.train
    give_teacher(config, loader, dataset.identity)
    taught = loader.teacher(loader.ends)
    drawn = loader.items[loader.ends]
    assert (drawn[:, None] == taught.items).any(axis=1).all() and (drawn > 0).all()
    _, model, *_ = load_run(str(joined))
    sequences = loader._dataset.sequences
    own = sequences.items[sequences.start[0] : sequences.end[0]][-config["MAX_ITEM_LIST_LENGTH"] :]
    history = torch.from_numpy(own).long().unsqueeze(0)
    asked = Interaction({"item_id_list": history, "item_length": torch.tensor([len(own)])})
    assert taught.items[0].tolist() == model.ranker.best(asked, 8).items[0].tolist()
    result = run(
        "ETEGRecLlama",
        "tiny",
        config_dict=small_values(tiny_data, **values, run_dir=str(tmp_path / "run")),
    )
    assert np.isfinite(list(result["test_result"].values())).all()
    *_, train, _, _ = load_run(str(tmp_path / "run"))  # without the teacher there are no ends
    assert all((batch.targets > 0).all() for (batch,) in train)


def test_all_that_must_learn_by_a_teacher_does(joined, tiny_data):  # noqa: F811
    report = check(
        "ETEGRecLlama",
        "tiny",
        config_dict=small_values(tiny_data, **LEARNS, distill_from=str(joined)),
    )
    assert "Distillation" in str(report) or "distillation" in str(report)


def test_teacher_is_refused_when_it_is_not_of_these_data(runs, joined, tiny_data, tmp_path):  # noqa: F811
    grown = shutil.copytree(runs["fused"], tmp_path / "grown")
    RunDirectory(grown).added_items.touch()
    cases = (
        ({"distill_from": str(tmp_path)}, "is it the directory of a run"),
        ({"distill_from": str(grown)}, "items were added to it"),
        ({"distill_from": str(runs["SASRec"])}, "must be an ensemble, or a finished run"),
        ({"distill_from": str(joined), "item_head": False}, "needs an item head"),
        (
            {"distill_from": str(joined), "user_inter_num_interval": "[10,inf)"},
            "items of tiny in another order than this run",
        ),
    )
    taught = set((joined / FOLDER).rglob("*"))  # by tests before this one, if there were any
    for number, (changes, message) in enumerate(cases):
        values = {**LEARNS, **changes, "run_dir": str(tmp_path / str(number))}
        with pytest.raises(UserError, match=message):
            run("ETEGRecLlama", "tiny", config_dict=small_values(tiny_data, **values))
    assert set((joined / FOLDER).rglob("*")) == taught
    assert not any((tmp_path / number).exists() for number in "0123")
