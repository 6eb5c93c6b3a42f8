"""What an archive may unpack to: one that somebody sends could fill the disk or the memory.

Tables and JSON lines shrink to a third or a tenth; an archive of zeros to a thousandth.
"""

import gzip
import io
import zipfile
from typing import BinaryIO

SMALL = 64 * 2**20  # bytes that any archive may unpack to, however small it is
RATIO = 100  # times its own size that a larger one may unpack to
TOTAL = 256 * 2**30  # bytes that the largest may
MEMBERS = 10_000


class TooLargeError(OSError):
    """An archive unpacks to more than one of its kind would."""


def check_size(unpacked: int, packed: int) -> None:
    """Refuse what an archive of `packed` bytes unpacks to, or would.

    Raises:
        TooLargeError: it is more than an archive of tables would unpack to.
    """
    if unpacked > SMALL and unpacked > RATIO * packed or unpacked > TOTAL:
        raise TooLargeError(
            f"{packed:,} bytes unpack to {unpacked:,} or more, and no table shrinks like that"
        )


def check_zip(archive: zipfile.ZipFile, packed: int) -> None:
    """Refuse a zip archive by the sizes that it names, which unpacking does not exceed.

    Members are counted against the archive as a whole, for several may share their bytes.

    Raises:
        TooLargeError: it unpacks to too much, or into too many files.
    """
    members = archive.infolist()
    if len(members) > MEMBERS:
        raise TooLargeError(f"{len(members):,} files in one archive, more than {MEMBERS:,}")
    check_size(sum(member.file_size for member in members), packed)


def open_gzip(raw: BinaryIO) -> BinaryIO:
    """Read what an open file unpacks to, if it is packed by gzip, and itself if it is not.

    Reading raises:
        TooLargeError: it has unpacked to too much.
    """
    packed = raw.read(2) == b"\x1f\x8b"
    raw.seek(0)
    return io.BufferedReader(_Bounded(gzip.GzipFile(fileobj=raw), raw)) if packed else raw


class _Bounded(io.RawIOBase):
    def __init__(self, unpacked: gzip.GzipFile, raw: BinaryIO):
        self._unpacked, self._raw, self._read = unpacked, raw, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._unpacked.readinto(buffer)
        self._read += count
        check_size(self._read, self._raw.tell())
        return count
