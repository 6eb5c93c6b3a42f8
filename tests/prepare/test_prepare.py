"""Raw dumps in their documented shapes, bad lines among them, as atomic files."""

import gzip
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recbole_etegrec.cli import main
from recbole_etegrec.config import Config
from recbole_etegrec.data import create_dataset
from recbole_etegrec.data.cells import MISSING
from recbole_etegrec.data.item_embedding.file import file_embedding
from recbole_etegrec.prepare.atomic import InteractionWriter, clean
from recbole_etegrec.storage.atomic import staged

# A review and an item as each year writes them.
REVIEWS = {
    2014: '{"reviewerID": "A1", "asin": "B1", "reviewerName": "x", "helpful": [0, 0], '
    '"reviewText": "t\\tt", "overall": 5.0, "summary": "s", "unixReviewTime": 1390000000, '
    '"reviewTime": "01 18, 2014"}',
    2018: '{"overall": 5.0, "verified": true, "reviewTime": "01 18, 2014", "reviewerID": "A1", '
    '"asin": "B1", "style": {"Size:": " L"}, "unixReviewTime": 1390000000}',
    2023: '{"rating": 5.0, "title": "s", "text": "t", "images": [], "asin": "B0VARIANT", '
    '"parent_asin": "B1", "user_id": "A1", "timestamp": 1390000000000, "helpful_vote": 0, '
    '"verified_purchase": true}',
}
ITEMS = {
    2014: "{'asin': 'B1', 'title': 'Soap &amp;\\tWater', 'price': 3.5, 'brand': 'Old Spice', "
    "'categories': [['Beauty', 'Bath'], ['Gifts']], 'description': 'it\\'s\\nfine', "
    "'salesRank': {'Beauty': 1}}",
    2018: '{"category": ["Beauty", "Bath", "Gifts"], "description": ["it\'s", "fine"], '
    '"title": "Soap &amp;\\tWater", "brand": "Old Spice", "price": "$3.50", "asin": "B1"}',
    2023: '{"main_category": "Beauty", "title": "Soap &amp;\\tWater", "features": ["big"], '
    '"description": ["it\'s", "fine"], "price": 3.50, "store": "Old Spice", '
    '"categories": ["Beauty", "Bath", "Gifts"], "parent_asin": "B1"}',
}


def written(path: Path) -> list[list[str]]:
    """The cells of a file, its header first."""
    return [line.split("\t") for line in path.read_text("utf-8").splitlines()]


def command(*arguments: str) -> int:
    return main(["prepare", *arguments])


@pytest.mark.parametrize("year", REVIEWS)
def test_prepare_amazon_writes_atomic_files_when_given_a_dump_of(year, tmp_path, capsys):
    review, item = REVIEWS[year], ITEMS[year]
    unit = 1000 if year == 2023 else 1
    later = review.replace("1390000000", "1380000000").replace('"B1"', '"B2"')
    lines = [review, "{broken", review, "", later, '"text"', review.replace('"A1"', '""')]
    lines += [review.replace("139000000", "null, ").replace("null, 0", "null"), "[1, 2]"]
    reviews = tmp_path / "reviews.json.gz"
    reviews.write_bytes(gzip.compress("\n".join(lines).encode() + b'\n{"asin": "\xff"}\n'))
    meta = tmp_path / "meta.json"
    meta.write_text("\n".join([item.replace("B1", "B9"), "{'a': }", item, item]) + "\n")
    out = tmp_path / "data" / "Soap"
    assert command("amazon", f"--reviews={reviews}", f"--meta={meta}", f"--out={out}") == 0
    assert written(out / "Soap.inter") == [
        ["user_id:token", "item_id:token", "rating:float", "timestamp:float"],
        ["A1", "B2", "5", str(1_380_000_000 * unit)],
        ["A1", "B1", "5", str(1_390_000_000 * unit)],
    ]
    assert written(out / "Soap.item")[1:] == [
        ["B1", "Soap & Water", "Old Spice", "Beauty Bath Gifts", "it's fine", written_price(year)]
    ]
    report = capsys.readouterr().out
    assert "6 malformed lines left out (line 2: no record of JSON, 6: no record" in report
    assert "1 users, 2 items, 2 interactions (1 repeated ones left out)" in report
    assert "1 malformed lines left out (line 2: no record of JSON), 1 items without" in report
    assert "Soap.item: 1 items, 1 more are not in" in report
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["Soap"]


def written_price(year: int) -> str:
    return "3.50" if year == 2018 else "3.5"


@pytest.mark.parametrize(
    ("price", "cell"),
    [('"$1,299.00 - $2,000.00"', "1299.00"), ('".a-box{color:1}"', ""), ("null", ""), ('"—"', "")],
)
def test_prepare_amazon_takes_the_amount_when_a_price_has_one(price, cell, tmp_path):
    (tmp_path / "r").write_text(REVIEWS[2018] + "\n")
    (tmp_path / "m").write_text(ITEMS[2018].replace('"$3.50"', price) + "\n")
    files = (f"--reviews={tmp_path / 'r'}", f"--meta={tmp_path / 'm'}")
    assert command("amazon", *files, f"--out={tmp_path / 'S'}") == 0
    assert (tmp_path / "S" / "S.item").read_text().split("\t")[-1] == f"{cell}\n"


def test_prepare_amazon_replaces_files_when_told_to_alone(tmp_path, capsys):
    (tmp_path / "r").write_text(REVIEWS[2014] + "\n")
    arguments = ("amazon", f"--reviews={tmp_path / 'r'}", f"--out={tmp_path / 'S'}")
    assert command(*arguments) == 0
    (tmp_path / "S" / "S.inter").write_text("mine")
    assert command(*arguments) == 2
    assert "S.inter: exists; give --overwrite" in capsys.readouterr().err
    assert (tmp_path / "S" / "S.inter").read_text() == "mine"
    assert command(*arguments, "--overwrite") == 0
    assert (tmp_path / "S" / "S.inter").read_text() != "mine"


def test_prepare_refuses_in_one_line_when_input_is_bad(tmp_path, capsys):
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "array").write_text('[{"asin": 1}]')
    cut = gzip.compress("\n".join([REVIEWS[2014]] * 1000).encode())
    (tmp_path / "cut.gz").write_bytes(cut[:-20])
    (tmp_path / "c.csv").write_text("user,item,time\nu,i,1\nu,i,1,2\n")
    (tmp_path / "ok.csv").write_text("user,item,time\nu,i,1\n")
    out, columns = f"--out={tmp_path / 'S'}", ("--user=user", "--item=item", "--time=time")
    table, sound = (f"--input={tmp_path}/{name}.csv" for name in ("c", "ok"))
    cases = {
        (): "prepare '': must be one of amazon, csv, jsonl, sequences, etegrec",
        ("amazn",): "did you mean 'amazon'?",
        ("amazon", out): "--reviews missing (may have [--meta] [--overwrite])",
        ("amazon", out, "--review=x"): "unknown argument --review; did you mean 'reviews'?",
        ("amazon", out, "--reviews=nothing"): "--reviews: no file nothing",
        ("amazon", out, f"--reviews={tmp_path}/empty"): "no review found, no malformed lines",
        ("amazon", out, f"--reviews={tmp_path}/array"): "write one record a line",
        ("amazon", out, f"--reviews={tmp_path}/cut.gz"): "damaged or cut short after line",
        ("sequences", out, f"--input={tmp_path}/empty"): "no line with a user and its items",
        ("sequences", out, f"--input={tmp_path}/cut.gz"): "damaged or cut short after line",
        ("csv", out, sound, "--user=usr", *columns[1:]): "no column 'usr' (found item, time, user)",
        ("csv", out, table, *columns): "Expected 3 fields in line 3, saw 4",
        ("csv", out, table, *columns, f"--items={tmp_path}/c.csv"): "give both, or neither",
        ("csv", out, table, *columns, "--item_fields=a:b"): "item_fields (a:b): the type must",
    }
    for arguments, message in cases.items():
        assert command(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error.splitlines()[-1]
        assert error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "S").exists()
    assert not list(tmp_path.glob(".S*"))


@pytest.mark.parametrize(
    ("text", "more", "times"),
    [
        ("who;what;when\na;x;3\nb;y;1\na;z;1\n", (), ["1", "1", "3"]),
        ("who\twhat\twhen\na\tx\t3e3\nb\ty\t1.5\na\tz\tnever\n", (), ["1.5", "3000"]),
        ("a|x|3\nb|y|\n|z|1\n", ("--header=False", "--separator=|"), ["3"]),
        (
            'who,what,when\na,x,2020-01-01T01:00:00Z\n"b",y,2020-01-01\n',
            (),
            ["1577836800", "1577840400"],
        ),
    ],
)
def test_prepare_csv_reads_the_times_when_written_as(text, more, times, tmp_path):
    (tmp_path / "in.csv").write_text(text)
    names = ("0", "1", "2") if "--header=False" in more else ("who", "what", "when")
    columns = [f"--{key}={name}" for key, name in zip(("user", "item", "time"), names, strict=True)]
    assert command("csv", f"--input={tmp_path}/in.csv", f"--out={tmp_path}/S", *columns, *more) == 0
    header, *rows = written(tmp_path / "S" / "S.inter")
    assert header == ["user_id:token", "item_id:token", "timestamp:float"]
    assert [row[2] for row in rows] == times


def test_prepare_jsonl_writes_items_when_given_their_fields(tmp_path, capsys):
    records = [{"u": 7, "i": 1, "t": 5, "r": 4.5}, {"u": 7, "i": 2, "t": 5, "r": "good"}]
    records += [{"u": 7, "i": 3, "t": 4}, {"u": None, "i": 3, "t": 4}]
    items = [{"i": 1, "title": '"Best"\nsoap', "tags": ["a b", "c"], "cost": 2}, {"i": 8}]
    for name, lines in (("in", records), ("items", items)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    columns = ["--user=u", "--item=i", "--time=t", "--rating=r"]
    fields = ["--item_fields=title,tags,cost:float", f"--items={tmp_path}/items.jsonl"]
    arguments = [f"--input={tmp_path}/in.jsonl", f"--out={tmp_path}/S", *columns, *fields]
    assert command("jsonl", *arguments) == 0
    assert written(tmp_path / "S" / "S.inter")[1:] == [["7", "3", "", "4"], ["7", "1", "4.5", "5"]]
    header = ["item_id:token", "title:token_seq", "tags:token_seq", "cost:float"]
    assert written(tmp_path / "S" / "S.item") == [header, ["1", 'Best" soap', "a b c", "2"]]
    report = capsys.readouterr().out
    assert "2 malformed lines left out (line 2: the rating is no number, 4: no user" in report


def test_prepare_sequences_keeps_the_order_of_the_line_as_the_time(tmp_path, capsys):
    lines = ["u1 a b\ta", "", "u2  c", "u3", "nan a", 'u1 "d"', "ü é"]
    (tmp_path / "in.txt").write_text("\r\n".join(lines), "utf-8")
    assert command("sequences", f"--input={tmp_path}/in.txt", f"--out={tmp_path}/S") == 0
    header, *rows = written(tmp_path / "S" / "S.inter")
    assert header == ["user_id:token", "item_id:token", "timestamp:float"]
    of_first = [row[1:] for row in rows if row[0] == "u1"]
    assert of_first == [["a", "0"], ["b", "1"], ["a", "2"], ['d"', "3"]]
    assert [row for row in rows if row[0] != "u1"] == [["u2", "c", "0"], ["ü", "é", "0"]]
    report = capsys.readouterr().out
    assert "2 malformed lines left out (line 4: no user and items, 5: no user and items)" in report
    assert "3 users, 5 items, 6 interactions" in report


def test_writer_keeps_first_and_order_when_times_are_equal(tmp_path):
    rows = [("u", "c", 5), ("u", "a", 5), ("v", "a", 1), ("u", "c", 5), ("u", "b", 2.5)]
    with staged(tmp_path / "S") as folder:
        writer = InteractionWriter(folder / "S.inter", rated=False)
        for row in rows:
            writer.add(*row)
        assert tuple(writer.finish()) == (2, 3, 4, 1)
    assert written(tmp_path / "S" / "S.inter")[1:] == [
        ["v", "a", "1"],
        ["u", "b", "2.5"],
        ["u", "c", "5"],
        ["u", "a", "5"],
    ]


def test_dataset_has_the_exact_order_when_times_are_closer_than_float32_tells(tmp_path):
    # Milliseconds of 2023: two minutes are one float32, and the dump has the newest first.
    rows = [(f"u{u}", f"i{i}", 1_690_000_000_000 - i) for u in range(5) for i in range(6)]
    with staged(tmp_path / "S") as folder:
        writer = InteractionWriter(folder / "S.inter", rated=False)
        for row in rows:
            writer.add(*row)
        writer.finish()
    values = {"data_path": str(tmp_path)}
    test = create_dataset(Config("ETEGRecLlama", "S", config_dict=values)).build()[2]
    targets = test.inter_feat["item_id"].numpy()
    assert set(test.field2id_token["item_id"][targets]) == {"i0"}


def test_clean_gives_a_cell_that_pandas_reads_back_when_text_is_wild():
    texts = ['"a" b', "a\tb\nc\r\nd", " a\u2028b ", '""', "a\0b", "é"]
    cells = [clean(text) for text in texts]
    lines = io.StringIO("x\ty\n" + "".join(f"{cell}\t1\n" for cell in cells))
    read = pd.read_csv(lines, sep="\t", engine="python", dtype=str, keep_default_na=False)
    assert read["x"].tolist() == cells == ['a" b', "a b c d", "a b", "", "ab", "é"]


def test_missing_is_what_pandas_reads_as_missing_when_it_reads_a_token():
    words = sorted(MISSING | {"none", "0", "NONE", "-", "?"})
    lines = io.StringIO("x\ty\n" + "".join(f"{word}\t1\n" for word in words))
    read = pd.read_csv(lines, sep="\t", engine="python", dtype=str)
    assert {word for word, gone in zip(words, read["x"].isna(), strict=True) if gone} == MISSING


def split_of(histories: dict[str, list[str]], longest: int = 99) -> dict[str, list[dict]]:
    """The rows of the published splits: a training row for each prefix, cut to `longest` items."""

    def row(user: str, items: list[str]) -> dict:
        return {"user_id": user, "target_id": items[-1], "inter_history": items[:-1][-longest:]}

    parts = {"train": [], "valid": [], "test": []}
    for user, items in histories.items():
        parts["train"] += [row(user, items[:end]) for end in range(2, len(items) - 1)]
        parts["valid"].append(row(user, items[:-1]))
        parts["test"].append(row(user, items))
    return parts


def write_split(folder: Path, parts: dict[str, list[dict]], index: dict[str, int]) -> list[str]:
    for part, rows in parts.items():
        (folder / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "map.json").write_text(json.dumps(index))
    files = [f"--{part}={folder}/{part}.jsonl" for part in parts]
    return ["etegrec", *files, f"--map={folder}/map.json", f"--out={folder}/S"]


HISTORIES = {f"u{u}": [f"i{(u * 3 + t * t) % 11}" for t in range(4 + 2 * u)] for u in range(6)}
INDEX = {"[PAD]": 0, **{f"i{n}": n + 1 for n in range(11)}}


@pytest.mark.parametrize(("longest", "padded"), [(99, True), (3, False)])
def test_prepare_etegrec_gives_the_published_split_when_histories_are_cut_to(
    longest, padded, tmp_path, capsys
):
    parts = split_of(HISTORIES, longest)
    parts["train"].reverse()
    if longest == 3:
        parts["train"].reverse()  # cut histories are told apart by the order of the file alone
    arguments = write_split(tmp_path, parts, INDEX)
    vectors = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    np.save(tmp_path / "e.npy", vectors if padded else vectors[1:])
    assert command(*arguments, f"--embeddings={tmp_path}/e.npy") == 0
    assert "all users have the split of the files" in capsys.readouterr().out

    values = {"data_path": str(tmp_path), "item_embedding": "file"}
    values["item_embedding_file"] = str(tmp_path / "S" / "S.npy")
    config = Config("ETEGRecLlama", "S", config_dict=values)
    built = create_dataset(config).build()
    for part, rows in zip(built[1:], (parts["valid"], parts["test"]), strict=True):
        users = part.field2id_token["user_id"][part.inter_feat["user_id"].numpy()]
        items = part.field2id_token["item_id"][part.inter_feat["item_id"].numpy()]
        targets = {row["user_id"]: row["target_id"] for row in rows}
        assert dict(zip(users, items, strict=True)) == targets
    found = file_embedding(built[0], Path(config["item_embedding_file"]))
    tokens = built[0].field2id_token["item_id"]
    for row, token in enumerate(tokens[1:], start=1):
        assert np.array_equal(found[row], vectors[INDEX[token]])


def test_prepare_etegrec_names_users_when_their_split_would_be_another(tmp_path, capsys):
    parts = split_of({**HISTORIES, "short": ["i1", "i2", "i3"]})
    parts["test"] = [row for row in parts["test"] if row["user_id"] != "u1"]
    parts["valid"][2]["inter_history"][0] = "i10"
    assert command(*write_split(tmp_path, parts, INDEX)) == 0
    report = capsys.readouterr().out
    assert "1 users left out for not one row each in valid and test: u1" in report
    assert "1 users left out for histories that do not continue each other: u2" in report
    assert "1 users left out for fewer than 4 interactions: short" in report
    assert {row[0] for row in written(tmp_path / "S" / "S.inter")[1:]} == {"u0", "u3", "u4", "u5"}


def test_prepare_etegrec_refuses_when_the_files_do_not_belong_together(tmp_path, capsys):
    arguments = write_split(tmp_path, split_of(HISTORIES), INDEX)
    np.save(tmp_path / "e.npy", np.zeros((9, 4)))
    assert command(*arguments, f"--embeddings={tmp_path}/e.npy") == 2
    assert (
        "shape (9, 4) of float64, need a row of numbers for each of 11" in capsys.readouterr().err
    )
    (tmp_path / "map.json").write_text('{"[PAD]": 0, "i0": 1}')
    assert command(*arguments) == 2
    assert "misses 10 items, first i1" in capsys.readouterr().err
    assert not (tmp_path / "S").exists()
