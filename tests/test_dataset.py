"""The split against the one that RecBole's own sequential dataset makes."""

import numpy as np
import pytest
import torch
from recbole.data.dataset import SequentialDataset

from recbole_etegrec.config import Config
from recbole_etegrec.data import create_dataset
from recbole_etegrec.data.sequences import sequence_offsets
from recbole_etegrec.errors import UserError
from tests.conftest import write_interactions
from tests.helpers import SMALL_MODEL, small_config


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
    ours, theirs = create_dataset(config).build(), SequentialDataset(config).build()
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
    part = "valid" if length == 3 else "(valid|test)"
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
