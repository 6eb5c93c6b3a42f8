"""What datasets say and keep, for the plugin's models and RecBole's."""

import logging

import pytest

from recbole_etegrec.config import Config
from recbole_etegrec.data import create_dataset, create_recbole_dataset
from recbole_etegrec.data.dataset_files import check_dataset_files
from recbole_etegrec.errors import UserError
from recbole_etegrec.runs.checks import check_rules
from tests.helpers import small_config

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float"


def write(folder, lines: list[str], item: str = "", header: str = HEADER) -> None:
    (folder / "d").mkdir(exist_ok=True)
    (folder / "d" / "d.inter").write_text("\n".join([header, *lines]) + "\n")
    if item:
        (folder / "d" / "d.item").write_text(item)


def config_of(folder, model: str = "SASRec", **more) -> Config:
    values = {"data_path": str(folder), "load_col": None, **more}
    if model == "ETEGRecLlama":
        return small_config(str(folder), "d", load_col=None, **more)
    return Config(model, "d", config_dict=values)


def dataset_of(folder, model: str = "SASRec", **more):
    create = create_dataset if model == "ETEGRecLlama" else create_recbole_dataset
    return create(config_of(folder, model, **more))


# 2023 in seconds, milliseconds, nanoseconds; and with decimals.
UNITS = {"s": "17000000{:02d}", "ms": "17000000000{:02d}", "ns": "17000000000000000{:02d}"}
UNITS |= {"decimals": "1700000000.0000000{:02d}"}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("model", ["ETEGRecLlama", "SASRec", "BPR"])
def test_interactions_follow_their_exact_times_when_the_newest_comes_first(model, unit, tmp_path):
    lines = [f"u{u}\ti{u + n}\t3\t{UNITS[unit].format(n)}" for u in range(3) for n in range(6)]
    write(tmp_path, lines[::-1])
    parts = dataset_of(tmp_path, model).build()
    for part, place in zip(parts[1:], (4, 5), strict=True):
        users, items = (part.field2id_token[name] for name in ("user_id", "item_id"))
        feat = part.inter_feat
        rows = zip(feat["user_id"].tolist(), feat["item_id"].tolist(), strict=True)
        targets = {users[user]: items[item] for user, item in rows}
        assert targets == {f"u{u}": f"i{u + place}" for u in range(3)}
        if "item_id_list" in feat:
            (row,) = (users[feat["user_id"]] == "u0").nonzero()[0]
            history = feat["item_id_list"][row].tolist()
            assert [items[i] for i in history if i] == [f"i{n}" for n in range(place)]


def test_equal_times_keep_the_order_of_the_file_and_filters_see_true_numbers(tmp_path):
    lines = [f"u\ti{n}\t3\t{1_700_000_000_000_000_000 + n // 3}" for n in range(12)]
    write(tmp_path, lines)
    interval = {"timestamp": "[1700000000000000000,inf)"}
    train = dataset_of(tmp_path, "BPR", val_interval=interval).build()[0]
    items = train.field2id_token["item_id"]
    assert [items[i] for i in train.inter_feat["item_id"]] == [f"i{n}" for n in range(10)]


def test_the_first_of_a_repeated_pair_counts_when_times_differ_by_little(tmp_path):
    lines = [f"u\ti{n % 5}\t{n}\t{1_700_000_009 - n}" for n in range(10)]
    write(tmp_path, lines)
    feat = dataset_of(tmp_path, "BPR", rm_dup_inter="first").inter_feat
    assert sorted(feat["rating"]) == [5, 6, 7, 8, 9]


LINES = [f"u{u}\ti{n}\t{n % 5}\t{100 + n}" for u in range(6) for n in range(10)]
ITEMS = "item_id:token\tprice:float\n" + "".join(f"i{n}\t{n}\n" for n in range(10) if n % 5)


@pytest.mark.parametrize("model", ["ETEGRecLlama", "SASRec", "Pop"])
@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({}, "12 of 60 interactions are left out, by d.item, which lacks 2 items of them"),
        ({"val_interval": {"rating": "[1,inf)"}}, "12 of 60 interactions are left out, by val_int"),
        ({"item_inter_num_interval": "[7,inf)"}, "no interaction is left, by item_inter_num_inter"),
        ({"val_interval": {"rating": "[9,inf)"}}, "no interaction is left, by val_interval"),
        ({"val_interval": {"price": "[8,9]"}}, "6 of its lines are left out by val_interval"),
        ({"val_interval": {"price": "[99,inf)"}}, "no interaction is left, by d.item"),
        ({"threshold": {"rating": 3}}, "threshold ({'rating': 3}) has no effect"),
    ],
)
def test_what_is_left_out_is_said_with_its_reason(keys, said, model, tmp_path, caplog):
    write(tmp_path, LINES, ITEMS)
    with caplog.at_level(logging.INFO):
        try:
            dataset_of(tmp_path, model, **keys)
            text = caplog.text
        except UserError as error:
            text = caplog.text + str(error)
    assert said in text


def test_missing_numbers_are_counted_when_they_get_the_mean(tmp_path, caplog):
    write(tmp_path, LINES, ITEMS.replace("i3\t3", "i3\t"))
    with caplog.at_level(logging.WARNING):
        dataset_of(tmp_path)
    assert "1 of 8 lines of item have no price, and get the mean" in caplog.text


def test_filters_have_no_effect_when_files_are_pre_split(tmp_path, caplog):
    write(tmp_path, [])
    for part in ("train", "valid", "test"):
        (tmp_path / "d" / f"d.{part}.inter").write_text("\n".join([HEADER, *LINES]) + "\n")
    keys = {"benchmark_filename": ["train", "valid", "test"], "rm_dup_inter": "first"}
    with caplog.at_level(logging.WARNING):
        assert len(dataset_of(tmp_path, **keys).inter_feat) == 180
    assert "rm_dup_inter (first) has no effect: pre-split files are not filtered" in caplog.text


BAD = {
    ("inter", "u\ti\tgood\t4"): "line 62: field 'rating' is no number, but 'good'",
    ("inter", "u\ti\tinf\t4"): "field 'rating' is no number, but 'inf'",
    ("inter", "u\ti\tnan\t4"): "field 'rating' is no number, but 'nan'",
    ("inter", "u\ti\t1_0\t4"): "field 'rating' is no number, but '1_0'",
    ("inter", "u\ti\t1e39\t4"): "field 'rating' is no number, but '1e39'",
    ("inter", "u\ti\t1.2.3\t4"): "field 'rating' is no number, but '1.2.3'",
    ("inter", "u\ti\t.\t4"): "field 'rating' is no number, but '.'",
    ("inter", "u\ti\t3\t2024-01-05"): "field 'timestamp' is no time, but '2024-01-05'",
    ("inter", "u\ti\t3\t"): "line 62: field 'timestamp' is no time",
    ("inter", "\ti\t3\t4"): "line 62: field 'user_id' is empty",
    ("inter", "u\tnull\t3\t4"): "field 'item_id' is empty, or reads as missing, but 'null'",
    ("item", "i77\t—"): "d.item, line 10: field 'price' is no number, but '—'",
    ("user", "u\t1 2 x"): "d.user, line 2: field 'vector' is no number, but '1 2 x'",
}


@pytest.mark.parametrize("model", ["ETEGRecLlama", "SASRec", "BPR"])
@pytest.mark.parametrize("place", BAD)
def test_a_bad_cell_is_named_by_file_line_field_and_value(place, model, tmp_path):
    suffix, line = place
    write(tmp_path, LINES, ITEMS)
    (tmp_path / "d" / "d.user").write_text("user_id:token\tvector:float_seq\n")
    with (tmp_path / "d" / f"d.{suffix}").open("a") as lines:
        lines.write(line + "\n")
    if suffix != "user":
        (tmp_path / "d" / "d.user").unlink()
    with pytest.raises(UserError) as refusal:
        check_dataset_files(config_of(tmp_path, model))
    assert BAD[place] in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_bad_cell_is_borne_when_its_field_is_not_loaded(tmp_path):
    write(tmp_path, [*LINES, "u\ti\tgood\t4"])
    with pytest.raises(UserError, match="rating"):
        check_dataset_files(config_of(tmp_path))
    check_dataset_files(config_of(tmp_path, load_col={"inter": ["user_id", "item_id"]}))
    check_dataset_files(config_of(tmp_path, unload_col={"inter": ["rating"]}))


@pytest.mark.parametrize("model", ["ETEGRecLlama", "SASRec"])
def test_cells_that_begin_with_a_quotation_mark_are_read_as_they_stand(model, tmp_path):
    lines = [line.replace("i3\t", '"i3\t').replace("i4\t", '"i4"\t') for line in LINES]
    titles = ["item_id:token\ttitle:token_seq", *(f'i{n}\t"Title {n}' for n in range(10))]
    write(tmp_path, lines, "\n".join([*titles, '"i3\tone', '"i4"\ttwo']) + "\n")
    check_dataset_files(config_of(tmp_path, model))
    dataset = dataset_of(tmp_path, model)
    tokens = set(dataset.field2id_token["item_id"])
    assert {'"i3', '"i4"'} <= tokens
    assert len(dataset.inter_feat) == 60
    assert '"Title' in dataset.field2id_token["title"]


@pytest.mark.parametrize("model", ["ETEGRecLlama", "SASRec", "BPR"])
def test_labeled_evaluation_is_refused_when_the_model_ranks(model, tmp_path):
    config = config_of(tmp_path, model, eval_args={"mode": "labeled"})
    with pytest.raises(UserError, match=f"mode .labeled. .*{model} ranks"):
        check_rules(config)
