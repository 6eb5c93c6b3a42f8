"""The header of an atomic file, read alike by everything that reads one."""

import pytest

from recbole_etegrec.data.atomic_header import read_header
from recbole_etegrec.errors import UserError


@pytest.mark.parametrize(
    "content, separator, encoding",
    [
        ("item_id:token\ttitle:token_seq\r\n1\ta", "\t", None),
        ("\ufeffitem_id:token,title:token_seq\n", ",", "utf-8-sig"),
        ("item_id:token||title:token_seq", "||", "latin-1"),
    ],
)
def test_read_header_gives_fields_and_types_whatever_separates_them(
    content, separator, encoding, tmp_path
):
    path = tmp_path / "d.item"
    path.write_bytes(content.encode("latin-1" if encoding == "latin-1" else "utf-8"))
    header = read_header(path, separator, encoding)
    assert header.types == {"item_id": "token", "title": "token_seq"}
    assert header.fields == list(header.types)
    assert header.byte_order_mark == content.startswith("\ufeff")


def test_read_header_names_the_encoding_when_the_text_is_in_another(tmp_path):
    path = tmp_path / "d.item"
    path.write_bytes("titré:token".encode("latin-1"))
    with pytest.raises(UserError, match="d.item: the header is not utf-8 text"):
        read_header(path, "\t", None)
    assert read_header(path, "\t", "latin-1").fields == ["titré"]
