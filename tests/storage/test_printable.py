"""What a terminal would obey is written out; what it shows stays."""

import pytest

from recbole_etegrec.storage.printable import one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Café 电影 😀 \u200d ك\u200cن", "Café 电影 😀 \u200d ك\u200cن"),
        ("\x1b[2Jgone\x07", r"\x1b[2Jgone\x07"),
        ("\x9b31mred", r"\x9b31mred"),
        ("safe\u202etxt.exe", r"safe\u202etxt.exe"),
        ("half \ud83d", r"half \ud83d"),
        ("over\rwritten", r"over\rwritten"),
    ],
)
def test_printable_writes_out_what_is_not_shown(text, shown):
    assert printable(text) == one_line(text) == shown


def test_one_line_writes_out_line_ends_and_printable_keeps_them():
    assert printable("a\n\tb\u2028") == "a\n\tb\\u2028"
    assert one_line("a\n\tb\u2028") == r"a\n\tb\u2028"
