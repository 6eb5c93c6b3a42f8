"""Fetches datasets by their name: RecBole's archives are unpacked into atomic files.

Addresses are those of RecBole's own list. A download that broke off goes on where it stood, and a
dataset folder holds all of an archive's files or none.
"""

import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from recbole_etegrec.config import Config
from recbole_etegrec.config.datasets import archives
from recbole_etegrec.errors import UserError, nearest
from recbole_etegrec.storage.archives import TOTAL, TooLargeError, check_zip
from recbole_etegrec.storage.atomic import staged

SUFFIXES = (".inter", ".item", ".user", ".net", ".kg", ".link")
ATTEMPTS = 4  # in a row that bring nothing
TIMEOUT = 30  # seconds without an answer
PAUSE = 1.0  # seconds before the second attempt, doubled for each further one
CHUNK = 1 << 18  # bytes
_WORTH_ANOTHER = (408, 429, 500, 502, 503, 504)  # answers that may be others in a moment


class WrongContentError(Exception):
    """The downloaded file is not the archive."""


def fetch_dataset(config: Config) -> None:
    """Fetch the archive of a dataset whose folder has no atomic file, if RecBole has one.

    The key ``download`` names the archive, as RecBole's list does, or gives its address; without
    it, the dataset's own name is looked up. One process fetches, others wait for it.

    Raises:
        UserError: the archive cannot be fetched, or is not what it should be.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    if _has_atomic_files(folder):
        return
    url = _address(config["download"], name)
    if url is None:
        return  # the check of the files says what is missing
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.parent / f".{name}.lock"
        with FileLock(lock):
            if not _has_atomic_files(folder):
                archive = folder.parent / f"{name}.zip.part"
                fetch(url, archive, config["show_progress"])
                try:
                    unpack(archive, folder)
                finally:
                    archive.unlink()
            lock.unlink(missing_ok=True)  # whoever waits for it will find the files
    except (OSError, http.client.HTTPException, WrongContentError) as error:
        raise UserError(
            f"dataset '{name}': nothing in {folder}, and {url} cannot be had ({error}): put "
            f"{name}.inter there, make it of raw data (recbole-etegrec prepare amazon|csv|jsonl "
            f"--out={folder} ...), or say where it is with --data_path=DIR"
        ) from error


def _has_atomic_files(folder: Path) -> bool:
    return folder.is_dir() and any(file.suffix in SUFFIXES for file in folder.iterdir())


def _address(archive: Any, dataset: str) -> str | None:
    if str(archive).startswith(("http://", "https://")):
        return archive
    known = archives()
    if archive and archive not in known:
        raise UserError(
            f"download ({archive}) must be a name of RecBole's list of datasets, or an address "
            f"(http, https){nearest(archive, known)}"
        )
    return known.get(archive or dataset)


def fetch(url: str, path: Path, show_progress: bool = True) -> None:
    """Fetch a zip archive from `url` into `path`; an interrupted download goes on.

    Raises:
        OSError: the server cannot be reached or refuses, or `path` cannot be written.
        WrongContentError: what came is no sound zip archive; `path` is removed.
    """
    resumed = path.exists()
    if resumed and _is_sound(path):
        return  # an earlier process ended before it was unpacked
    with tqdm(desc=url, unit="B", unit_scale=True, disable=not show_progress) as bar:
        _fetch(url, path, bar)
        if resumed and not _is_sound(path):  # what was there was the beginning of something else
            path.unlink()
            _fetch(url, path, bar)
    if not _is_sound(path):
        path.unlink()
        raise WrongContentError("what came is no zip archive, or a damaged one")


def _fetch(url: str, path: Path, bar: tqdm) -> None:
    """Try until one attempt succeeds or `ATTEMPTS` in a row have brought nothing."""
    failures = 0
    while True:
        before = _size(path)
        try:
            return _attempt(url, path, bar)
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # there is nothing past what we have: begin anew
                path.unlink()
            elif error.code not in _WORTH_ANOTHER:
                raise
            reason: Exception = error
        except (OSError, http.client.HTTPException) as error:
            reason = error
        failures = 0 if _size(path) > before else failures + 1
        if failures == ATTEMPTS:
            raise reason
        time.sleep(PAUSE * 2 ** max(failures - 1, 0))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _attempt(url: str, path: Path, bar: tqdm) -> None:
    """Make one request for the part that `path` lacks.

    Raises:
        OSError: the connection broke off, or stood still for `TIMEOUT`.
    """
    held = _size(path)
    request = urllib.request.Request(url, headers={"Range": f"bytes={held}-"} if held else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        length = int(answer.headers.get("Content-Length") or 0)
        if answer.status == 206:
            span = f"bytes {held}-{held + length - 1}/{held + length}"
            if answer.headers.get("Content-Range") != span:
                path.unlink(missing_ok=True)
                raise ConnectionError("the server went on elsewhere than was asked")
        else:
            held = 0
        bar.reset(held + length or None)
        bar.update(held)
        with path.open("ab" if held else "wb") as file:
            while chunk := answer.read1(CHUNK):
                file.write(chunk)
                if file.tell() > TOTAL:
                    raise WrongContentError(f"it is larger than {TOTAL:,} bytes")
                bar.update(len(chunk))
            end = file.tell()
    if length and end != held + length:
        raise ConnectionError(f"broke off after {end} of {held + length} bytes")


def _is_sound(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            check_zip(archive, _size(path))
            return archive.testzip() is None
    except TooLargeError as error:
        path.unlink()
        raise WrongContentError(str(error)) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        return False


def unpack(archive: Path, folder: Path) -> None:
    """Write the atomic files of an archive to `folder`, under its name.

    Whatever folder of the archive they are in, ``Amazon_Beauty.inter`` becomes ``X.inter`` and
    ``a.train.inter`` beside ``a.test.inter`` becomes ``X.train.inter``; other files stay out.

    Raises:
        WrongContentError: there is no ``.inter`` among them, or two of one kind.
    """
    with zipfile.ZipFile(archive) as content, staged(folder) as fresh:
        files = {entry: PurePosixPath(entry.filename).name for entry in content.infolist()}
        files = {e: n for e, n in files.items() if n.endswith(SUFFIXES) and n[0] != "."}
        if not any(name.endswith(".inter") for name in files.values()):
            found = ", ".join(content.namelist()[:5])
            raise WrongContentError(f"the archive has no .inter file, but {found or 'nothing'}")
        named = _length_of_name(files.values())
        for entry, name in files.items():
            kind = ".".join(name.split(".")[named:])
            target = fresh / f"{folder.name}.{kind}"
            if target.exists():
                raise WrongContentError(f"the archive has two files for {target.name}")
            with content.open(entry) as source, target.open("wb") as lines:
                shutil.copyfileobj(source, lines)


def _length_of_name(files: Iterable[str]) -> int:
    """Count the dotted words of the dataset's own name: those that all file names begin with."""
    words = [file.split(".")[:-1] for file in files]
    return max(len(os.path.commonprefix(words)), 1)
