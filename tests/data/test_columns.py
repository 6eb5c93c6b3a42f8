"""Binary columns against the reading of text, of which they must give the same."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_etegrec.config import Config
from recbole_etegrec.data import create_dataset, data_preparation
from recbole_etegrec.data.columnar_dataset import ColumnarDataset
from recbole_etegrec.data.columns import NOTE
from recbole_etegrec.data.identity import known_ids
from recbole_etegrec.data.input_files import require_files
from recbole_etegrec.data.item_embedding.cache import interactions_digest
from recbole_etegrec.data.kept_columns import columns_of
from recbole_etegrec.errors import UserError
from recbole_etegrec.inference.command import recommend_command
from recbole_etegrec.inference.histories import split_histories, whole_histories
from recbole_etegrec.quick_start import run
from tests.helpers import REAL_DATA, small_values

pytest.importorskip("pyarrow")

HEADER = "user_id:token\titem_id:token\ttimestamp:float\n"


def write_text(folder, lines, name="made", header=HEADER) -> str:
    """An atomic file; returns the folder of datasets."""
    (folder / name).mkdir(parents=True)
    (folder / name / f"{name}.inter").write_text(header + "".join(lines))
    return str(folder)


def random_lines(seed: int, count: int = 1500, time: str = "{}") -> list[str]:
    """Lines with ties in time, repeats, rare users and items, and blanks between."""
    rng = np.random.default_rng(seed)
    users, items = rng.zipf(1.4, count) % 90, rng.zipf(1.3, count) % 70
    times = rng.integers(1_600_000_000, 1_600_000_400, count)
    lines = [
        f"u {user}\tä{item}\t{time.format(moment)}\n"
        for user, item, moment in zip(users, items, times, strict=True)
    ]
    return [*lines[:100], "\n", *lines[100:]]


def both(folder: str, name: str = "made", **more):
    """A dataset as its text is read, and as its columns are."""
    configs = [
        Config("ETEGRecLlama", name, config_dict=small_values(folder, binary_from_mib=mib, **more))
        for mib in (None, 0)
    ]
    datasets = [create_dataset(config) for config in configs]
    assert [isinstance(dataset, ColumnarDataset) for dataset in datasets] == [False, True]
    return configs, datasets


def assert_same(folder: str, name: str = "made", **more) -> None:
    """Whether ids, identity, split, batches and what is not ranked are the same."""
    configs, datasets = both(folder, name, **more)
    text, columns = datasets
    assert columns.identity == text.identity
    for field in (text.uid_field, text.iid_field):
        assert list(columns.field2id_token[field]) == list(text.field2id_token[field])
        assert dict(columns.field2token_id[field]) == dict(text.field2token_id[field])
        assert columns.num(field) == text.num(field)
    assert str(columns).splitlines()[1:] == str(text).splitlines()[1:]
    loaders = [data_preparation(c, d) for c, d in zip(configs, datasets, strict=True)]
    trains = [train for train, *_ in loaders]
    assert interactions_digest(trains[0]._dataset) == interactions_digest(trains[1]._dataset)
    for train in trains:
        train.draw(3)
    for a, b in zip(*trains, strict=True):
        for own, other in zip(a[0], b[0], strict=True):
            same = torch.equal if torch.is_tensor(own) else (lambda x, y: x == y)
            assert same(own, other)
    for ours, theirs in zip(loaders[0], loaders[1], strict=True):
        feats = [loader._dataset.inter_feat.interaction for loader in (ours, theirs)]
        for field in feats[0]:
            assert torch.equal(feats[0][field], feats[1][field]), field
    for ours, theirs in zip(loaders[0][1:], loaders[1][1:], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            for field in a[0].interaction:
                assert torch.equal(a[0][field], b[0][field])
            if a[1] is not None:
                assert all(map(torch.equal, a[1], b[1]))
            assert all(map(torch.equal, a[2:], b[2:]))
    assert_same_histories(datasets, loaders)


class _Model:
    """What histories ask of a model."""

    class fields:  # noqa: N801
        history, length = "item_id_list", "item_length"

    max_history = 50


def assert_same_histories(datasets, loaders) -> None:
    for split in (None, "valid", "test"):
        found = [
            whole_histories(_Model, dataset, True)
            if split is None
            else split_histories(of_split, split, True)
            for dataset, of_split in zip(datasets, loaders, strict=True)
        ]
        assert found[0].users.tolist() == found[1].users.tolist()
        rows = np.arange(min(len(found[0].users), 40))
        (own, excluded), (other, others) = (histories.histories.batch(rows) for histories in found)
        assert all(torch.equal(own[field], other[field]) for field in own.interaction)
        assert all(map(torch.equal, excluded, others))


@pytest.mark.parametrize("time", ["{}", "{}.0", "-{}"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"exclude_history": True},
        {"user_inter_num_interval": "[5,inf)", "item_inter_num_interval": "[5,200)"},
        {"rm_dup_inter": "last", "item_inter_num_interval": "[3,inf)", "exclude_history": True},
        {"rm_dup_inter": "first"},
    ],
    ids=str,
)
def test_columns_give_what_text_gives(more, time, tmp_path):
    assert_same(write_text(tmp_path, random_lines(1, time=time)), **more)


@pytest.mark.parametrize("more", [{}, {"exclude_history": True}], ids=str)
def test_columns_give_what_text_gives_of_ml_100k(more, tmp_path):
    source = Config("ETEGRecLlama", "ml-100k", config_dict={})["data_path"]
    text = Path(source, "ml-100k.inter").read_text().splitlines(keepends=True)
    assert_same(write_text(tmp_path, text[1:], "copy", text[0]), "copy", **more)


@pytest.mark.skipif(not (REAL_DATA / "Beauty").is_dir(), reason="needs Beauty")
def test_columns_give_what_text_gives_of_a_cut_of_beauty(tmp_path):
    with (REAL_DATA / "Beauty" / "Beauty.inter").open() as file:
        lines = [line for line, _ in zip(file, range(30_000), strict=False)]
    more = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}}
    folder = write_text(tmp_path, lines[1:], "cut", lines[0])
    assert_same(folder, "cut", user_inter_num_interval="[5,inf)", **more)


def config_of(folder: str, **more) -> Config:
    values = small_values(folder, **{"binary_from_mib": 0, **more})
    return Config("ETEGRecLlama", "made", config_dict=values)


def made_at(folder) -> list[int]:
    return [note.stat().st_ino for note in sorted(folder.rglob(NOTE))]


def test_columns_are_made_once_and_anew_when_text_or_filters_change(tmp_path):
    folder = write_text(tmp_path, random_lines(1))
    require_files(config_of(folder))
    first = made_at(tmp_path)
    assert len(first) == 1
    create_dataset(config_of(folder))
    assert made_at(tmp_path) == first
    create_dataset(config_of(folder, rm_dup_inter="first"))
    assert len(made_at(tmp_path)) == 2
    (tmp_path / "made" / "made.inter").write_text(HEADER + "".join(random_lines(2)))
    assert_same(folder)
    assert first[0] not in made_at(tmp_path)


def test_columns_stay_when_the_text_was_written_again_as_it_was(tmp_path):
    folder = write_text(tmp_path, random_lines(1))
    before = columns_of(config_of(folder), make=True).note
    text = tmp_path / "made" / "made.inter"
    text.write_text(text.read_text() + "")
    after = columns_of(config_of(folder), make=True).note
    assert after["digest"] == before["digest"] and after["stamp"] != before["stamp"]


def test_columns_are_made_anew_when_they_are_damaged(tmp_path, caplog):
    folder = write_text(tmp_path, random_lines(1))
    create_dataset(config_of(folder))
    (data,) = (tmp_path / "made").rglob("interactions.arrow")
    data.write_bytes(data.read_bytes()[:-50] + b"x" * 50)
    assert_same(folder)
    assert "damaged, the columns are made anew" in caplog.text


def test_columns_lie_in_the_cache_when_the_dataset_cannot_be_written(tmp_path, monkeypatch):
    folder = write_text(tmp_path, random_lines(1))
    monkeypatch.setattr("recbole_etegrec.data.kept_columns.os.access", lambda *_: False)
    assert_same(folder)
    assert not list((tmp_path / "made").glob("*.columns")) and made_at(tmp_path / "cache")


@pytest.mark.parametrize(
    "line, found",
    [("u1\ti1\n", "line 3: 2 columns"), ("\ti1\t3\n", "line 3: field 'user_id' is empty")],
)
def test_text_is_checked_before_columns_are_made_of_it(line, found, tmp_path):
    folder = write_text(tmp_path, ["u1\ti1\t1\n", line])
    with pytest.raises(UserError, match=found):
        require_files(config_of(folder))
    assert not made_at(tmp_path)


def test_filters_that_leave_nothing_are_refused(tmp_path):
    folder = write_text(tmp_path, random_lines(1))
    with pytest.raises(UserError, match=r"no interaction is left, by user_inter_num_interval"):
        create_dataset(config_of(folder, user_inter_num_interval="[5000,inf)"))


@pytest.mark.parametrize(
    "more, why",
    [
        ({"val_interval": {"timestamp": "[0,inf)"}}, "know no val_interval"),
        ({"load_col": {"inter": ["user_id", "item_id"], "user": ["user_id"]}}, "have item_id"),
    ],
)
def test_text_is_read_when_columns_do_not_have_what_is_asked_for(more, why, tmp_path, caplog):
    folder = write_text(tmp_path, random_lines(1))
    assert columns_of(config_of(folder, **more), make=True) is None
    assert why in caplog.text


def test_text_is_read_when_times_are_fractions(tmp_path, caplog):
    folder = write_text(tmp_path, random_lines(1, time="{}.5"))
    assert columns_of(config_of(folder), make=True) is None
    assert "whole numbers as times" in caplog.text
    assert not made_at(tmp_path)


def test_warnings_of_filters_are_said_at_each_start(tmp_path, caplog):
    folder = write_text(tmp_path, random_lines(1))
    said = []
    for mib in (None, 0, 0):
        caplog.clear()
        values = small_values(folder, binary_from_mib=mib, rm_dup_inter="first")
        create_dataset(Config("ETEGRecLlama", "made", config_dict=values))
        said.append([m for m in caplog.messages if "left out" in m])
    assert said[0] and said[0] == said[1] == said[2]


def test_ids_are_those_that_are_known_when_data_are_the_same_or_have_changed(tmp_path):
    folder = write_text(tmp_path, random_lines(1))
    dataset = create_dataset(config_of(folder))
    tokens = list(dataset.field2id_token["item_id"])
    with known_ids({"item_id": [*tokens, "later"]}) as changes:
        again = create_dataset(config_of(folder))
    assert isinstance(again, ColumnarDataset) and again.item_num == len(tokens) + 1
    assert changes.gone["item_id"].tolist() == [len(tokens)] and not changes.new["item_id"]
    with known_ids({"item_id": [tokens[0], *tokens[:0:-1]]}):
        other = create_dataset(config_of(folder))
    assert not isinstance(other, ColumnarDataset)
    assert list(other.field2id_token["item_id"][1:]) == tokens[:0:-1]


def test_nothing_is_written_when_a_run_is_used(tmp_path, caplog):
    folder = write_text(tmp_path, random_lines(1))
    config = config_of(folder)
    require_files(config, fetch=False)
    tokens = create_dataset(config_of(folder, binary_from_mib=None)).field2id_token["item_id"]
    with known_ids({"item_id": tokens.tolist()}):
        create_dataset(config)
    assert not made_at(tmp_path) and not list((tmp_path / "made").glob("*.columns"))
    assert "has no current binary columns" in caplog.text


def test_note_is_plain_data(tmp_path):
    folder = write_text(tmp_path, random_lines(1))
    create_dataset(config_of(folder))
    (note,) = tmp_path.rglob(NOTE)
    assert json.loads(note.read_text())["warnings"] == []


@pytest.mark.slow
def test_run_and_its_recommendations_are_the_same_to_the_bit(tiny_data, tmp_path):
    folder = shutil.copytree(tiny_data, tmp_path / "data")
    found = []
    for mib in (None, 0):
        run_dir, out = tmp_path / f"run {mib}", tmp_path / f"{mib}.csv"
        values = small_values(str(folder), item_head=True, candidates=20, run_dir=str(run_dir))
        result = run("ETEGRecLlama", "tiny", config_dict={**values, "binary_from_mib": mib})
        arguments = {"all": "", "out": str(out), "exclude-history": "True"}
        list(recommend_command(str(run_dir), arguments))
        found.append((result["test_result"], result["best_valid_result"], out.read_bytes()))
    assert (folder / "tiny" / "tiny.columns").is_dir()
    assert found[0] == found[1]
