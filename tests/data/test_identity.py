"""Data that are read with the ids of before: the same tokens have the same ids, others none."""

from pathlib import Path

import numpy as np
import pytest

from recbole_etegrec.config import Config
from recbole_etegrec.data import create_dataset, data_preparation
from recbole_etegrec.data.identity import Identity, known_ids
from tests.conftest import HEADER, write_interactions
from tests.helpers import small_config

ORDER = ["[PAD]", "i4", "i2", "i0", "i1", "i3"]
PARTS = ["train", "valid", "test"]


def write_presplit(folder: Path, rows: dict[str, list[str]]) -> Config:
    """Rows of user, history and target, by the name of their part."""
    (folder / "split").mkdir()
    header = "user_id:token\titem_id_list:token_seq\titem_id:token"
    for part, lines in rows.items():
        text = "\n".join([header, *(line.replace("|", "\t") for line in lines)]) + "\n"
        (folder / "split" / f"split.{part}.inter").write_text(text)
    return small_config(str(folder), "split", benchmark_filename=PARTS)


def test_known_ids_drop_unknown_items_from_presplit_files(tmp_path):
    config = write_presplit(
        tmp_path,
        {
            "train": ["a|i0|i1", "a|i0 i1|new", "b|new|i2", "b|i2 new i3|i4"],
            "valid": ["a|i0 i1 new|i2", "b|new new|i3"],
            "test": ["a|i1 new i2|i3", "b|i2|new"],
        },
    )
    with known_ids({"item_id": ORDER}) as changes:
        dataset = create_dataset(config)
    assert dataset.field2id_token["item_id"].tolist() == ORDER
    assert dataset.file_size_list == [2, 1, 1]
    assert (changes.new, len(changes.gone["item_id"])) == ({"item_id": 1}, 0)
    train, valid, test = (loader._dataset for loader in data_preparation(config, dataset))
    tokens = [
        dataset.id2token("item_id", part.inter_feat["item_id"].numpy()).tolist()
        for part in (train, valid, test)
    ]
    assert tokens == [["i0", "i1", "i2", "i3", "i4"], ["i2"], ["i3"]]
    history = test.inter_feat["item_id_list"][0].numpy()
    assert (
        dataset.id2token("item_id", history[:2]).tolist() == ["i1", "i2"] and not history[2:].any()
    )


def test_known_ids_keep_the_ids_of_features_of_users_and_items(tmp_path):
    write_interactions(tmp_path, "d", [[(u + t) % 9 for t in range(5)] for u in range(20)])
    text = [f"i{item}\tc{item % 3}" for item in (*range(9), 77)]
    (tmp_path / "d" / "d.item").write_text("\n".join(["item_id:token\tclass:token", *text]) + "\n")
    columns = {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id", "class"]}
    config = small_config(str(tmp_path), "d", load_col=columns)
    tokens = {
        "item_id": ["[PAD]", *(f"i{n}" for n in range(9, -1, -1))],
        "class": ["[PAD]", "c2", "c1"],
    }
    with known_ids(tokens) as changes:
        dataset = create_dataset(config)
    feat = dataset.item_feat
    assert len(feat) == dataset.item_num == 11  # without i77
    names = dataset.id2token("item_id", feat["item_id"].to_numpy())
    of = dict(zip(names, feat["class"], strict=True))
    assert [of[f"i{n}"] for n in range(9)] == [0, 2, 1] * 3  # c0 is not known
    assert changes.gone["item_id"].tolist() == [1] and changes.new == {"item_id": 1, "class": 1}


def test_ids_are_given_as_ever_when_the_block_has_ended(tiny_data):
    first = create_dataset(small_config(tiny_data))
    with pytest.raises(ZeroDivisionError), known_ids({"item_id": ORDER}):
        raise ZeroDivisionError
    again = create_dataset(small_config(tiny_data))
    assert first.identity == again.identity
    assert again.identity == Identity.from_record(again.identity.record())


@pytest.mark.parametrize(
    ("change", "same"),
    [(lambda rows: rows[::-1], True), (lambda rows: rows[:-1], False), (lambda rows: rows, True)],
)
def test_digest_of_interactions_depends_on_sequences_alone(change, same, tmp_path):
    rows = [f"u{u}\ti{(u + t) % 9}\t{t}" for u in range(20) for t in range(5)]
    digests = []
    for name, lines in (("a", rows), ("b", change(rows))):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.inter").write_text("\n".join([HEADER, *lines]) + "\n")
        with known_ids({"item_id": ["[PAD]", *(f"i{n}" for n in range(9))]}):
            digests.append(create_dataset(small_config(str(tmp_path), name)).identity.interactions)
    assert (digests[0] == digests[1]) == same


def test_record_of_an_identity_is_refused_when_a_token_differs(tiny_data):
    record = create_dataset(small_config(tiny_data)).identity.record()
    tokens = record["tokens"]["item_id"]
    tokens[1], tokens[2] = tokens[2], tokens[1]
    with pytest.raises(ValueError, match="not as it was written"):
        Identity.from_record(record)
    assert np.unique(tokens).size == 41
