"""Records are read whole and of their shape, or refused in one line that names the file."""

import json

import pytest

from recbole_etegrec.errors import UserError
from recbole_etegrec.storage.records import NUMBER, checked, read_json, read_lines, read_yaml

SHAPE = {"name": str, "values": [NUMBER], "more?": {"*": (int, None)}}
GOOD = {"name": "a", "values": [1, 2.5], "more": {"b": None, "c": 2}, "unsaid": object}


def test_checked_gives_back_what_has_the_shape():
    assert checked(GOOD, SHAPE) is GOOD
    assert checked({"name": "", "values": []}, SHAPE)
    assert checked({"b": 2}, (str, {"b": int})) == {"b": 2}


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ([], "it is a list"),
        ({"name": "a"}, "no 'values'"),
        ({**GOOD, "name": None}, "'name' is a NoneType"),
        ({**GOOD, "values": [1, "2"]}, "what 'values' lists is a str"),
        ({**GOOD, "values": [True]}, "what 'values' lists is a bool"),
        ({**GOOD, "values": {"0": 1}}, "'values' is a dict"),
        ({**GOOD, "more": {"b": 1.5}}, "'b' is a float"),
    ],
)
def test_checked_says_where_a_value_has_another_shape(value, fault):
    with pytest.raises(ValueError, match="^" + fault):
        checked(value, SHAPE)


@pytest.mark.parametrize("read", [read_json, read_yaml, read_lines])
@pytest.mark.parametrize(
    "content", [b"\xff\xfe{", b"[]\n", b"5\n", b"[" * 10**5 + b"\n", b'{"name": 2024-02-31}\n']
)
def test_file_is_refused_in_one_line_when_it_is_damaged(read, content, tmp_path):
    path = tmp_path / "record"
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        read(path, SHAPE)
    message = str(refusal.value)
    assert message.startswith(str(path)) and ": damaged (" in message
    assert "\n" not in message and len(message) < 500


def test_lines_name_the_one_that_is_damaged_and_leave_out_one_that_is_being_written(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": "x"}\n')
    with pytest.raises(UserError, match="lines.jsonl, line 2: damaged .'a' is a str"):
        read_lines(path, {"a": int})
    path.write_text(json.dumps({"a": 1}) + '\n{"a"')
    assert read_lines(path, {"a": int}) == [{"a": 1}]
