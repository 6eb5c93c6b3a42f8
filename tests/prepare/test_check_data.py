"""What `check-data` says of files that are sound, odd and broken."""

import re
from pathlib import Path

import pytest

from recbole_etegrec.cli import main
from tests.helpers import beauty_path

HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float"


def checked(folder: Path, capsys, lines: list[str], items: str = "") -> tuple[int, str, str]:
    """Exit code, report and error of ``check-data d`` for an ``.inter`` of these lines."""
    (folder / "d").mkdir(exist_ok=True)
    text = "\n".join(lines).encode("utf-8", "surrogateescape") + b"\n"
    (folder / "d" / "d.inter").write_bytes(text)
    if items:
        (folder / "d" / "d.item").write_text(items)
    code = main(["check-data", "d", f"--data_path={folder}"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_check_data_sums_up_when_files_are_sound(tmp_path, capsys):
    lines = [f"u{u}\ti{n}\t3\t{n // 2}" for u in range(2) for n in range(4 + 2 * u)]
    items = "item_id:token\ttitle:token_seq\ni0\ta\ni9\tb\n"
    code, report, error = checked(tmp_path, capsys, [HEADER, *lines], items)
    assert (code, error) == (0, "")
    assert report.splitlines() == [
        "2 users, 6 items, 10 interactions",
        "history: mean 5.00, median 5, longest 6",
        "neighbours in a history at the same time: 62.5%",
        "d.item: 2 items, 1 of them without interactions; 5 items of interactions are not in it",
    ]


FAULTS = {
    "u\ti\t3": "error: d.inter, line 6: 3 columns, the header has 4",
    "\ti\t3\t4": "error: d.inter, line 6: field 'user_id' is empty, or reads as missing",
    "u\tNA\t3\t4": "error: d.inter, line 6 ('NA'): field 'item_id' is empty, or reads as missing",
    "u\ti\tgood\t4": "error: d.inter, line 6 ('good'): field 'rating' is no number",
    "u\ti\t\t4": "warning: d.inter, line 6: field 'rating' is empty: RecBole takes the mean",
    "u\ti\t3\tsoon": "error: d.inter, line 6 ('soon'): field 'timestamp' is no time",
    "u\ti\t3\t": "error: d.inter, line 6: field 'timestamp' is no time",
    "u\ti\t3\tnan": "error: d.inter, line 6 ('nan'): field 'timestamp' is no time",
    "u\ti\udcff\t3\t4": "error: d.inter, line 6: not utf-8 text (byte 4)",
    "u0\ti1\t3\t1": "warning: d.inter, line 6: same user, item and time as an earlier line",
    "v\ti1\t3\t1": "warning: d.inter: 1 users have fewer than 4 interactions",
}


@pytest.mark.parametrize("line", FAULTS)
def test_check_data_names_line_and_field_when_it_finds(line, tmp_path, capsys):
    sound = [f"u0\ti{n}\t3\t{n}" for n in range(4)]
    code, report, error = checked(tmp_path, capsys, [HEADER, *sound, line])
    assert FAULTS[line] in report
    wrong = FAULTS[line].startswith("error")
    assert code == (2 if wrong else 0)
    assert error == ("error: dataset 'd': 1 errors, see above\n" if wrong else "")
    assert " users, " in report  # the sound lines are summed up all the same


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("user_id:token\titem_id:token\trating:float\ttime:float", "did you mean 'time'?"),
        ("user_id\titem_id:token\trating:float\ttimestamp:float", "line 1 ('user_id'): the header"),
        ("user_id:token\titem_id:token\trating:int\ttimestamp:float", "1 ('rating:int'): the h"),
        ("user_id:token\titem_id:token\titem_id:token\ttimestamp:float", "'item_id' comes twice"),
        ("\ufeff" + HEADER, "line 1: a byte order mark comes first"),
    ],
)
def test_check_data_names_the_header_when_it_is_wrong(header, message, tmp_path, capsys):
    code, report, _ = checked(tmp_path, capsys, [header, "u\ti\t3\t4"])
    assert code == 2
    assert message in report


def test_check_data_counts_equal_faults_once_when_they_are_many(tmp_path, capsys):
    lines = [f"u\ti{n}\tbad{n}\t{n}" for n in range(9)]
    code, report, error = checked(tmp_path, capsys, [HEADER, *lines])
    assert "line 2 ('bad0'), 3 ('bad1'), 4 ('bad2') and 6 more: field 'rating'" in report
    assert (code, error) == (2, "error: dataset 'd': 9 errors, see above\n")


def test_check_data_looks_at_items_when_there_are_some(tmp_path, capsys):
    items = "item_id:token\tprice:float\ti:float_seq\ni1\t2\t1 2\ni1\tx\t1 y\n\t3\t1\n"
    report = checked(tmp_path, capsys, [HEADER, "u\ti1\t3\t1"], items)[1]
    assert "error: d.item, line 3 ('x'): field 'price' is no number" in report
    assert "error: d.item, line 3 ('1 y'): field 'i' is no number" in report
    assert "warning: d.item, line 3 ('i1'): item of an earlier line, which counts" in report
    assert "error: d.item, line 4: field 'item_id' is empty" in report


def test_check_data_refuses_when_there_is_no_such_dataset(tmp_path, capsys):
    for arguments, message in {
        (): "expected the name of a dataset",
        ("d", f"--data_path={tmp_path}"): f"no file {tmp_path}/d/d.inter",
        ("d", "--data_pth=x"): "did you mean 'data_path'?",
    }.items():
        assert main(["check-data", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_check_data_finds_nothing_when_given_real_data(capsys):
    assert main(["check-data", "Beauty", f"--data_path={beauty_path()}"]) == 0
    report = capsys.readouterr().out
    assert report.startswith("22363 users, 12101 items, 198502 interactions\n")
    assert not re.search("error|warning", report)


def presplit_report(folder: Path, capsys, parts: dict[str, list[str]], header: str) -> tuple:
    (folder / "d").mkdir(exist_ok=True)
    for part, lines in parts.items():
        (folder / "d" / f"d.{part}.inter").write_text("\n".join([header, *lines]) + "\n")
    names = "--benchmark_filename=[train,valid,test]"
    code = main(["check-data", "d", f"--data_path={folder}", names])
    return code, capsys.readouterr().out


def test_check_data_reads_pre_split_files_when_they_are_named(tmp_path, capsys):
    header = "user_id:token\titem_id_list:token_seq\titem_id:token"
    parts = {"train": ["u\ta b\tc", "v\t\tc"], "valid": ["u\ta b c\td"], "test": ["u\tb c d\ta"]}
    code, report = presplit_report(tmp_path, capsys, parts, header)
    assert code == 0
    assert "d.train.inter: 2 users, 1 items, 2 lines; history: mean 1.00, longest 2, 2 it" in report
    assert "warning: d.train.inter: 1 lines have no history, and are left out" in report
    parts["valid"] = ["u\ta b 0 0\td", "\ta\td"]
    code, report = presplit_report(tmp_path, capsys, parts, header)
    assert code == 2
    assert "error: d.valid.inter: 1 histories are filled up with '0'" in report
    assert "error: d.valid.inter, line 3: field 'user_id' is empty" in report


def test_check_data_reads_plain_parts_when_they_have_times(tmp_path, capsys):
    parts = {"train": ["u\ta\t3\t1"], "valid": ["u\tb\t3\t2", "w\tb\t3\t2"], "test": ["u\tc\tx\t3"]}
    code, report = presplit_report(tmp_path, capsys, parts, HEADER)
    assert code == 2
    assert "error: d.test.inter, line 2 ('x'): field 'rating' is no number" in report
    assert "warning: d.valid.inter: 1 lines have no history" in report
    assert "d.valid.inter: 2 users, 1 items, 2 lines" in report
