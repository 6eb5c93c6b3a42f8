"""The split against the one that RecBole's own sequential dataset makes."""

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data.dataset import SequentialDataset

from recbole_etegrec.config import Config
from recbole_etegrec.data import create_dataset, create_recbole_dataset
from recbole_etegrec.data.checked_dataset import CheckedDataset
from recbole_etegrec.data.sequences import sequence_offsets
from recbole_etegrec.errors import UserError
from tests.benchmarks.scale import generate
from tests.conftest import write_interactions
from tests.helpers import SMALL_MODEL, small_config, small_data


class TimelyDataset(CheckedDataset, SequentialDataset):
    """RecBole's own, in the order of exact times."""


def rows_of(part) -> dict[int, tuple]:
    """Of each user of a held-out part: history, its length as the dataset says, target."""
    columns = (part.uid_field, part.item_id_list_field, part.item_list_length_field, part.iid_field)
    users, histories, lengths, targets = (part.inter_feat[name].tolist() for name in columns)
    rows = {}
    for user, history, length, target in zip(users, histories, lengths, targets, strict=True):
        assert user not in rows
        assert not any(history[length:])
        rows[user] = (history[:length], length, target)
    return rows


def pairs_of(part) -> list[tuple[int, int]]:
    """Every (user, target) of RecBole's prefix rows, in order of user and time."""
    columns = (part.uid_field, part.item_list_length_field, part.iid_field)
    return sorted(zip(*(part.inter_feat[name].tolist() for name in columns), strict=True))


def config_of(dataset: str, tiny_data: str, **more) -> Config:
    if dataset == "tiny":
        return small_config(tiny_data, **more)
    return Config("ETEGRecLlama", dataset, config_dict={**SMALL_MODEL, **more})


@pytest.mark.parametrize("dataset", ["tiny", "ml-100k"])
def test_build_holds_out_what_recbole_does_when_split_for_valid_and_test(dataset, tiny_data):
    config = config_of(dataset, tiny_data)
    ours, theirs = create_dataset(config).build(), TimelyDataset(config).build()
    for part, reference in zip(ours[1:], theirs[1:], strict=True):
        rows = rows_of(part)
        assert rows == rows_of(reference)
        assert max(length for _, length, _ in rows.values()) == 50
    # RecBole's training rows are all items but each user's first.
    train = ours[0]
    users = train.inter_feat[train.uid_field].numpy()
    items = train.inter_feat[train.iid_field].numpy()
    first = sequence_offsets(users)[:-1]
    targets = np.delete(items, first)
    expected = [(user, item) for user, _, item in pairs_of(theirs[0])]
    found = list(zip(np.delete(users, first).tolist(), targets.tolist(), strict=True))
    # RecBole cuts lengths at the window, so long users are compared as bags.
    assert sorted(found) == sorted(expected)


def test_build_cuts_histories_when_longer_than_the_window(tiny_data):
    long = rows_of(create_dataset(small_config(tiny_data)).build()[2])
    short = rows_of(create_dataset(small_config(tiny_data, MAX_ITEM_LIST_LENGTH=7)).build()[2])
    assert {
        user: (history[-7:], min(length, 7), target)
        for user, (history, length, target) in long.items()
    } == short


def test_build_keeps_interactions_of_users_together_when_the_file_is_shuffled(tmp_path):
    histories = [[(3 * u + t) % 11 for t in range(4 + u % 5)] for u in range(15)]
    write_interactions(tmp_path, "sorted", histories)
    write_interactions(tmp_path, "mixed", [[0]])
    header, *lines = (tmp_path / "sorted" / "sorted.inter").read_text().splitlines()
    order = np.random.default_rng(0).permutation(len(lines))
    mixed = "\n".join([header, *(lines[i] for i in order)]) + "\n"
    (tmp_path / "mixed" / "mixed.inter").write_text(mixed)

    def named(name: str) -> list[dict]:
        parts = create_dataset(small_config(str(tmp_path), name)).build()[1:]
        tokens = [
            (part.field2id_token["user_id"], part.field2id_token["item_id"]) for part in parts
        ]
        return [
            {
                users[user]: ([items[i] for i in history], length, items[target])
                for user, (history, length, target) in rows_of(part).items()
            }
            for part, (users, items) in zip(parts, tokens, strict=True)
        ]

    assert named("mixed") == named("sorted")


@pytest.mark.parametrize("length", [1, 2, 3])
def test_build_refuses_when_a_part_would_be_empty(length, tmp_path):
    write_interactions(tmp_path, "short", [[u, u + 1, u + 2][:length] for u in range(6)])
    dataset = create_dataset(small_config(str(tmp_path), "short"))
    part = {1: "train", 2: "valid", 3: "valid"}[length]
    with pytest.raises(UserError, match=f"the {part} part of short is empty .*needs 4 inter"):
        dataset.build()


@pytest.mark.parametrize(
    ("users", "expected"), [([], [0]), ([4], [0, 1]), ([1, 1, 3, 2, 2, 2], [0, 2, 3, 6])]
)
def test_sequence_offsets_mark_where_each_user_begins_when_sorted(users, expected):
    assert sequence_offsets(np.array(users, dtype=np.int64)).tolist() == expected


def test_create_dataset_fills_missing_values_when_an_item_file_has_gaps(tmp_path):
    write_interactions(tmp_path, "gaps", [[(u + t) % 9 for t in range(6)] for u in range(12)])
    lines = [f"i{n}\t{'' if n % 3 else n / 2}" for n in range(9)]
    text = "\n".join(["item_id:token\tprice:float", *lines]) + "\n"
    (tmp_path / "gaps" / "gaps.item").write_text(text)
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "price"]}
    values = {"data_path": str(tmp_path), "load_col": columns}
    dataset = create_dataset(Config("ETEGRecLlama", "gaps", config_dict=values))
    dataset.build()
    assert torch.isfinite(dataset.get_item_feature()["price"]).all()


def awkward_files(folder) -> None:
    """Ties in time, repeated pairs, gaps, many decimals; users and items of few lines."""
    rng = np.random.default_rng(5)
    (folder / "awkward").mkdir()
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for _ in range(900):
        tokens = [f"u{rng.integers(60)}", f"i {int(rng.zipf(1.6)) % 50}"]
        rating = f"{rng.normal():.17g}" if rng.random() < 0.9 else ""
        time = rng.choice([f"{rng.integers(5)}", f"{rng.random() * 1e9:.9f}", "1.5e3"])
        lines.append("\t".join([*tokens, rating, time]))
    (folder / "awkward" / "awkward.inter").write_text("\n".join(lines) + "\n")
    lines = ["item_id:token\tprice:float\tclass:token_seq"]
    lines += [f"i {n}\t{'' if n % 3 else n / 7}\t{'a b'[: n % 4]}" for n in range(2, 50)]
    (folder / "awkward" / "awkward.item").write_text("\n".join(lines) + "\n")


FILTERS = {
    "user_inter_num_interval": "[4,inf)",
    "item_inter_num_interval": "[3,120]",
    "val_interval": {"rating": "[-1.5,inf)"},
    "filter_inter_by_user_or_item": True,
}


@pytest.mark.parametrize("filters", [{}, FILTERS, {"item_inter_num_interval": "[7,30);[40,50]"}])
def test_create_dataset_reads_and_filters_as_recbole_does_when_files_are_awkward(filters, tmp_path):
    awkward_files(tmp_path)
    values = {"load_col": None, **filters}
    config = small_config(str(tmp_path), "awkward", **values)
    ours, theirs = create_dataset(config), SequentialDataset(config)
    table = theirs.inter_feat.sort_values("timestamp", kind="stable")
    theirs.inter_feat = table.reset_index(drop=True)
    for name in ("inter_feat", "item_feat"):
        pd.testing.assert_frame_equal(getattr(ours, name), getattr(theirs, name), rtol=1e-12)
    assert 100 < len(ours) < 900
    for field, tokens in theirs.field2id_token.items():
        assert ours.field2id_token[field].tolist() == tokens.tolist()
        assert ours.field2token_id[field] == theirs.field2token_id[field]
    parts, references = ours.build(), theirs.build()
    for part, reference in zip(parts[1:], references[1:], strict=True):
        assert rows_of(part) == rows_of(reference)
        feats = (part.inter_feat, reference.inter_feat)
        for name in ("user_id", "item_id", "rating", "timestamp"):
            one, other = (feat[name][feat["user_id"].argsort()] for feat in feats)
            assert torch.equal(one, other), name


def calls_of(work) -> int:
    """How many functions, Python's or built in, are called."""
    calls = 0

    def count(frame, event, argument) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def calls_at_scale(folder, interactions: int) -> tuple[int, float, float]:
    """Calls of splitting, and for each step of drawing and of batching an epoch."""
    generate(folder, interactions)
    config = small_config(str(folder), "zipf")
    train = small_data(config)[1].train
    assert len(train) > interactions / 1500
    per_step = (
        calls_of(work) / len(train) for work in (lambda: train.draw(1), lambda: list(train))
    )
    return calls_of(create_dataset(config).build), *per_step


def test_split_and_batches_do_no_work_in_python_for_each_row_when_data_grows(tmp_path):
    for name in ("small", "large"):
        (tmp_path / name).mkdir()
    small = calls_at_scale(tmp_path / "small", 20_000)
    large = calls_at_scale(tmp_path / "large", 200_000)
    assert large[0] < 1.1 * small[0] < 2000
    assert large[1] < 20
    assert large[2] < 150


@pytest.mark.parametrize("model", ["ETEGRecLlama", "BPR"])
def test_interactions_of_one_time_keep_their_order_when_repeats_are_removed(model, tmp_path):
    rng = np.random.default_rng(0)
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user in range(300):
        lines += [f"u{user}\ti{item}\t7" for item in rng.permutation(40)[:6]]
        lines.append(lines[-1])  # a repeat
    (tmp_path / "ties").mkdir()
    (tmp_path / "ties" / "ties.inter").write_text("\n".join(lines) + "\n")
    values = {
        "data_path": str(tmp_path),
        "rm_dup_inter": "first",
        "filter_inter_by_user_or_item": False,
    }
    values |= SMALL_MODEL if model == "ETEGRecLlama" else {}
    config = Config(model, "ties", config_dict=values)
    dataset = (create_dataset if model == "ETEGRecLlama" else create_recbole_dataset)(config)
    feat = dataset.inter_feat
    tokens = [dataset.field2id_token[f] for f in ("user_id", "item_id")]
    found = [
        f"{tokens[0][user]}\t{tokens[1][item]}\t7"
        for user, item in zip(feat["user_id"], feat["item_id"], strict=True)
    ]
    assert found == [line for line, before in zip(lines[1:], lines, strict=False) if line != before]
