"""A run that is used on data that have changed: its items stay its items, or it is refused."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from recbole_etegrec import add_items, explain, load_exported, load_run, recommend, run
from recbole_etegrec.cli import main
from recbole_etegrec.errors import UserError
from recbole_etegrec.inference.histories import whole_histories
from tests.conftest import HEADER
from tests.helpers import small_values
from tests.runs.test_baseline import values_for

Row = tuple[str, str, int]
HISTORIES = [["i3", "i4", "i5"], ["i9"]]
FASTEST = {"tokenizer_epochs": 1, "epochs": 0, "finetune_epochs": 1}


def rows_of() -> list[Row]:
    """Users who walk around a circle of 30 items, each from another one, some by two steps."""
    return [
        (f"u{user}", f"i{(user + (1 + user % 2) * step) % 30}", step)
        for user in range(40)
        for step in range(6 + user % 5)
    ]


def write_rows(folder: Path, rows: list[Row], name: str = "shop") -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    lines = [HEADER, *("\t".join(map(str, row)) for row in rows)]
    (folder / name / f"{name}.inter").write_text("\n".join(lines) + "\n")


def shuffled(rows: list[Row]) -> list[Row]:
    return random.Random(3).sample(rows, len(rows))


def without_user(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row[0] != "u0"]


def with_new_items(rows: list[Row]) -> list[Row]:
    more = [(f"u{user}", f"new{user}", 3) for user in range(0, 40, 3)]
    return [*more, *rows, ("somebody", "i7", 1), ("somebody", "new3", 2), ("somebody", "i8", 3)]


def edited(rows: list[Row]) -> list[Row]:
    """Another item first in the file."""
    return [("u0", "i29", 0), *rows[1:]]


def values_of(data: Path, run_dir: Path, **more) -> dict:
    return small_values(str(data), **{**FASTEST, "run_dir": str(run_dir), **more})


@pytest.fixture(scope="module", params=["beam", "exact"])
def trained(request, tmp_path_factory) -> Path:
    """A folder with the data of a run, and the run."""
    folder = tmp_path_factory.mktemp("trained")
    write_rows(folder, rows_of())
    values = values_of(folder, folder / "run", ranking=request.param, num_beams=20)
    run("ETEGRecLlama", "shop", config_dict=values)
    return folder


@pytest.fixture
def shop(trained, tmp_path) -> Path:
    """The run and its data, to change at will; nothing else of training is there."""
    shutil.copytree(trained / "run", tmp_path / "run")
    write_rows(tmp_path, rows_of())
    return tmp_path


def load(shop: Path, **more) -> tuple:
    where = {"data_path": str(shop), "embedding_cache": str(shop / "nothing")}
    return load_run(str(shop / "run"), {**where, **more})


def answers(shop: Path, k: int = 29, **more) -> list[list[tuple[str, float]]]:
    _, model, dataset, *_ = load(shop, **more)
    found = recommend(model, dataset, HISTORIES, k)
    return [[(one.item, one.log_probability) for one in ranking] for ranking in found]


@pytest.mark.parametrize("change", [shuffled, without_user, with_new_items, edited])
def test_recommendations_stay_when_the_data_change(change: Callable, shop, caplog):
    before = answers(shop)
    assert not caplog.records
    write_rows(shop, change(rows_of()))
    assert answers(shop) == before
    warnings = [record.message for record in caplog.records]
    assert len(warnings) == (change is not shuffled)
    if change is with_new_items:
        (warning,) = warnings
        assert warning == (
            "shop has changed since the run was trained: 14 items are new and not known to it, "
            "the interactions of those it knows are others"
        )


def test_histories_and_targets_keep_what_is_known_when_items_are_new(shop):
    _, _, dataset, *loaders = load(shop)
    write_rows(shop, shuffled(with_new_items(rows_of())))
    _, model, now, *others = load(shop)
    users = whole_histories(model, now, exclude=False)
    place = users.users.tolist().index("somebody")
    items = users.histories.batch(np.array([place]))[0]["item_id_list"]
    assert now.id2token("item_id", items[0].numpy()).tolist() == ["i7", "i8"]
    for before, after in zip(loaders, others, strict=True):
        assert tokens_by_user(after._dataset).items() >= tokens_by_user(before._dataset).items()
    assert dataset.item_num == now.item_num == 31


def tokens_by_user(part) -> dict[str, list[str]]:
    feat, found = part.inter_feat, {}
    users, items = (part.id2token(f, feat[f].numpy()) for f in (part.uid_field, part.iid_field))
    for user, item in zip(users, items, strict=True):
        found.setdefault(user, []).append(item)
    return found


def test_items_are_never_recommended_when_they_are_gone(shop, caplog, capsys):
    before = answers(shop)
    gone = {"i6", "i29", before[0][0][0], before[1][0][0]}
    write_rows(shop, [row for row in rows_of() if row[1] not in gone])
    after = answers(shop)
    assert f"{len(gone)} items are gone and are not recommended" in caplog.text
    for was, now in zip(before, after, strict=True):
        kept = [pair for pair in was if pair[0] not in gone]
        assert not gone & {item for item, _ in now}
        assert [item for item, _ in now][: len(kept) - 5] == [item for item, _ in kept][:-5]
    _, model, dataset, _, valid, test = load(shop)
    rows = next(iter(test))[0]
    out = dataset.token2id("item_id", list(gone))
    scores = model.full_sort_predict(rows)
    assert scores.shape == (len(rows), 31) and scores[:, out].isneginf().all()
    here = next(item for item in range(1, 31) if item not in out)
    asked = torch.tensor([[*out, here]]).expand(len(rows), -1)
    scores = model.ranker.score(rows, asked)  # as sampled evaluation does
    assert scores[:, :-1].isneginf().all() and scores[:, -1].isfinite().all()
    excluded = torch.tensor([0, 0]), torch.tensor([out[0], here])  # one that is gone anyway
    assert not set(out) & set(model.ranker.best(rows, 26, excluded).items.flatten().tolist())
    assert recommend(model, dataset, [["i6", "i29"]], 3)  # a history may have them
    with pytest.raises(UserError, match="item i29: gone from the data since the run was trained"):
        explain(model, dataset, ["i3"], "i29")
    assert main(["export", str(shop / "run"), f"--out={shop}/out", f"--data_path={shop}"]) == 0
    exported, items = load_exported(shop / "out", "cpu")
    found = recommend(exported, items, HISTORIES, 29)
    assert [[one.item for one in ranking] for ranking in found] == [
        [item for item, _ in ranking] for ranking in after
    ]


def test_added_items_are_known_to_histories_when_the_data_have_them(shop):
    (shop / "new.item").write_text("item_id:token\nn1\nn2\n")
    np.save(shop / "new.npy", np.random.default_rng(0).standard_normal((2, 10)))
    changed = {"data_path": str(shop)}
    add_items(str(shop / "run"), str(shop / "new.item"), str(shop / "new.npy"), changed)
    before = answers(shop, 32)
    assert {"n1", "n2"} <= {item for item, _ in before[0]}
    write_rows(shop, shuffled([*rows_of(), ("u1", "n2", 99), ("u1", "n3", 98)]))
    assert answers(shop, 32) == before
    _, model, dataset, *_ = load(shop)
    users = whole_histories(model, dataset, exclude=False)
    history = users.histories.batch(np.flatnonzero(users.users == "u1"))[0]["item_id_list"][0]
    assert dataset.id2token("item_id", history.numpy())[-1] == "n2"


def test_load_run_is_refused_in_one_line_when_items_cannot_be_mapped(shop):
    def refusal(**more) -> str:
        with pytest.raises(UserError) as error:
            load(shop, **more)
        assert "\n" not in str(error.value)
        return str(error.value)

    write_rows(shop, [(user, f"x{item}", time) for user, item, time in rows_of()])
    assert "no interaction of a user and an item that the run knows" in refusal()
    write_rows(shop, rows_of())
    assert "of shop cannot be given the ids" in refusal(
        ITEM_ID_FIELD="user_id", USER_ID_FIELD="item_id"
    )
    identity = shop / "run" / "identity.json"
    text = identity.read_text()
    identity.write_text(text.replace('"i4"', '"i5"', 1))
    assert "identity.json: damaged" in refusal()
    identity.write_text(text[:-9])
    assert "identity.json: damaged" in refusal()
    identity.unlink()
    assert "has no identity.json" in refusal()
    identity.write_text(text)
    vectors = shop / "run" / "item_embedding.safetensors"
    content = bytearray(vectors.read_bytes())
    content[-3] ^= 1
    vectors.write_bytes(content)
    assert "item_embedding.safetensors: damaged" in refusal()
    vectors.unlink()
    assert "item_embedding.safetensors: damaged" in refusal()


def test_run_is_used_when_nothing_is_left_of_what_its_vectors_were_made_of(shop):
    before = answers(shop)
    config = shop / "run" / "config.yaml"
    values = yaml.safe_load(config.read_text())
    values |= {"item_embedding": ["file", "text"], "item_embedding_file": "gone.npy"}
    values |= {"text_model": "./gone", "text_fields": ["title"]}
    config.write_text(yaml.safe_dump(values))
    assert answers(shop) == before


def test_checkpoints_that_a_kill_at_the_end_has_left_are_cleared_when_the_run_is_used(shop):
    for name in ("last", "previous"):
        shutil.copytree(shop / "run" / "best", shop / "run" / name)
    load(shop)
    assert not (shop / "run" / "last").exists() and not (shop / "run" / "previous").exists()


# Going on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [shuffled, without_user, with_new_items, edited])
@pytest.mark.parametrize("source", ["collaborative", "file"])
def test_resume_is_refused_when_the_data_have_changed(source, change, tmp_path, monkeypatch):
    write_rows(tmp_path, rows_of())
    names = [f"i{n}" for n in range(30)] + [f"new{n}" for n in range(40)]
    np.save(tmp_path / "v.npy", np.random.default_rng(0).standard_normal((70, 8)))
    (tmp_path / "v.items").write_text("".join(f"{name}\n" for name in names))
    values = values_of(
        tmp_path,
        tmp_path / "run",
        item_embedding=source,
        item_embedding_file=str(tmp_path / "v.npy"),
    )
    monkeypatch.setattr(
        "recbole_etegrec.trainer.ETEGRecTrainer.evaluate", lambda *_, **__: 1 / 0
    )  # after the last checkpoint
    with pytest.raises(ZeroDivisionError):
        run("ETEGRecLlama", "shop", config_dict=values)
    monkeypatch.undo()
    write_rows(tmp_path, change(rows_of()))
    with pytest.raises(UserError, match="resume: shop has changed since the run in .* began"):
        run(config_dict={"resume": str(tmp_path / "run")})
    write_rows(tmp_path, rows_of())
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert run(config_dict={"resume": str(tmp_path / "run")})["test_result"]


# Files of recommendations -----------------------------------------------------------------------


def test_recommend_does_not_go_on_when_histories_or_weights_have_changed(shop, capsys, monkeypatch):
    out = shop / "out.csv"
    command = ["recommend", str(shop / "run"), "--users=u3,u4", f"--out={out}"]
    command.append(f"--data_path={shop}")
    monkeypatch.setattr("recbole_etegrec.inference.output.PartedFile.join", lambda *_: 1 / 0)
    assert main(command) == 1
    monkeypatch.undo()
    write_rows(shop, [row for row in rows_of() if row[0] != "u3" or row[2] > 0])
    assert main(command) == 2
    assert "is left of a command with another histories" in capsys.readouterr().err
    write_rows(shop, [row for row in rows_of() if row[1] != "i22"])
    assert main(command) == 2
    assert "is left of a command with another items gone" in capsys.readouterr().err
    write_rows(shop, rows_of())
    assert main(command) == 0 and len(out.read_text().splitlines()) == 21


# RecBole's own models ---------------------------------------------------------------------------


def scores_by_token(run_dir: Path, data: Path) -> dict[str, dict[str, float]]:
    """A model's scores of all items, for each user of the test."""
    from recbole.utils.case_study import full_sort_scores

    _, model, dataset, *_, test = load_run(str(run_dir), {"data_path": str(data)})
    users = [u for u in ("u7", "u8") if u in dataset.field2token_id["user_id"]]
    scores = full_sort_scores(dataset.token2id("user_id", users), model, test, model.device)
    items = dataset.field2id_token["item_id"][1:]
    return {
        user: dict(zip(items, row[1:].tolist(), strict=True))
        for user, row in zip(users, scores, strict=True)
    }


@pytest.mark.parametrize("model", ["Pop", "BPR", "SASRec"])
def test_baseline_keeps_its_items_when_the_data_change(model, tmp_path):
    write_rows(tmp_path, rows_of())
    run(model, "shop", config_dict=values_for(str(tmp_path), tmp_path / "run", epochs=1))
    before = scores_by_token(tmp_path / "run", tmp_path)
    for change in (shuffled, without_user, with_new_items):
        write_rows(tmp_path, change(rows_of()))
        after = scores_by_token(tmp_path / "run", tmp_path)
        assert before.keys() == after.keys()
        for user in before:
            assert after[user] == pytest.approx(before[user])
    gone = {"i7", "i20"}
    write_rows(tmp_path, shuffled([row for row in rows_of() if row[1] not in gone]))
    for scores in scores_by_token(tmp_path / "run", tmp_path).values():
        assert {item for item, score in scores.items() if score == -np.inf} >= gone
    write_rows(tmp_path, [(f"x{user}", item, time) for user, item, time in rows_of()])
    with pytest.raises(UserError, match="no interaction of a user and an item that the run knows"):
        scores_by_token(tmp_path / "run", tmp_path)


def test_identity_of_a_baseline_has_the_tokens_of_all_fields(tmp_path):
    write_rows(tmp_path, rows_of())
    run("Pop", "shop", config_dict=values_for(str(tmp_path), tmp_path / "run", epochs=1))
    identity = json.loads((tmp_path / "run" / "identity.json").read_text())
    assert set(identity["tokens"]) >= {"user_id", "item_id"}
    assert identity["tokens"]["item_id"][:3] == ["[PAD]", "i0", "i1"]
    assert identity["vectors"] is None
