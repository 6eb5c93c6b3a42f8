"""Checksums of a folder: any change of any file of it is found."""

import pytest

from recbole_etegrec.storage.digests import damaged_file, write_checksums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "below").mkdir()
    for name in ("a.bin", "below/b.bin"):
        (tmp_path / name).write_bytes(bytes(range(256)) * 9)
    write_checksums(tmp_path)
    write_checksums(tmp_path)  # leaves itself out
    return tmp_path


@pytest.mark.parametrize("name", ["a.bin", "below/b.bin"])
def test_damaged_file_names_the_file_when_a_bit_differs_or_it_is_gone(folder, name):
    assert damaged_file(folder, "a.bin") is None
    path = folder / name
    whole = path.read_bytes()
    for place in (0, 1000, len(whole) - 1):
        content = bytearray(whole)
        content[place] ^= 1
        path.write_bytes(content)
        assert damaged_file(folder) == name
    path.write_bytes(whole[:-1])
    assert damaged_file(folder) == name
    path.unlink()
    assert damaged_file(folder) == name


@pytest.mark.parametrize("text", [None, "", "{", "[]", "7", "null", "{}"])
def test_damaged_file_says_so_when_the_sums_themselves_are_damaged(folder, text):
    if text is None:
        (folder / "checksums.json").unlink()
    else:
        (folder / "checksums.json").write_text(text)
    assert damaged_file(folder, "a.bin") == ("a.bin" if text == "{}" else "checksums.json")


def test_damaged_file_names_what_is_needed_when_it_never_was_there(folder):
    assert damaged_file(folder, "c.bin") == "c.bin"
