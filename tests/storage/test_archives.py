"""What is packed may not unpack to more than a table would."""

import gzip
import io
import zipfile

import pytest

from recbole_etegrec.storage import archives
from recbole_etegrec.storage.archives import TooLargeError, check_size, check_zip, open_gzip


def test_open_gzip_reads_the_same_when_a_file_is_packed_or_not():
    text = b"".join(b"%d\t%d\n" % (n, n * n) for n in range(30_000))
    for content in (text, gzip.compress(text)):
        assert open_gzip(io.BytesIO(content)).read() == text
        assert list(open_gzip(io.BytesIO(content)))[2] == b"2\t4\n"


def test_open_gzip_stops_when_a_file_unpacks_to_too_much():
    bomb = gzip.compress(bytes(archives.SMALL * 2), 9)
    unpacked, read = open_gzip(io.BytesIO(bomb)), 0
    with pytest.raises(TooLargeError, match="bytes unpack to"):
        while part := unpacked.read(1 << 20):
            read += len(part)
    assert read <= archives.SMALL


def test_check_size_takes_what_tables_unpack_to_and_refuses_more():
    check_size(archives.SMALL, 1)
    check_size(100 * archives.SMALL, archives.SMALL)
    for unpacked, packed in ((archives.SMALL + 1, 1), (archives.TOTAL + 1, archives.TOTAL)):
        with pytest.raises(TooLargeError):
            check_size(unpacked, packed)


def test_check_zip_refuses_when_there_are_too_many_files(monkeypatch):
    monkeypatch.setattr(archives, "MEMBERS", 3)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(4):
            archive.writestr(str(number), "")
            if number < 3:
                check_zip(archive, 100)
        with pytest.raises(TooLargeError, match="4 files in one archive, more than 3"):
            check_zip(archive, 100)
