"""Files and folders are written under another name and then renamed: no reader sees half of one."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from recbole_etegrec.errors import UserError, os_error


@contextmanager
def atomic_directory(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Fill a directory beside `path`; it takes the place of `path` when the block succeeds.

    What was at `path` stays until then, and stays for good if the block raises.

    Args:
        keep: the former content of `path` is moved there; without it, it is deleted.
    """
    fresh = path.with_name(f".{path.name}.new")
    former = keep or path.with_name(f".{path.name}.old")
    if keep is None and former.exists() and not path.exists():
        os.replace(former, path)  # an earlier process died between the two renames below
    shutil.rmtree(fresh, ignore_errors=True)
    with naming(path):
        fresh.mkdir(parents=True)
        try:
            yield fresh
        except BaseException:
            shutil.rmtree(fresh)
            raise
    for file in filter(Path.is_file, fresh.rglob("*")):
        as_readable_as_its_folder(file)
    if path.exists():
        shutil.rmtree(former, ignore_errors=True)
        os.replace(path, former)
    os.replace(fresh, path)
    if keep is None:
        shutil.rmtree(former, ignore_errors=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Raise what fails to be written, by whatever library, as an error that names its file.

    Raises:
        OSError: in place of any error that is about one.
    """
    try:
        yield
    except Exception as error:
        if (found := os_error(error, path)) is None:
            raise
        raise found from error


def as_readable_as_its_folder(path: Path) -> None:
    """Let all who may read a folder read a file in it; safetensors lets only the owner read it."""
    path.chmod(path.parent.stat().st_mode & 0o666)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Write a file beside `path`; it takes the place of `path` when the block succeeds.

    A reader of `path` sees all of what was there before, or all of the new file. Several processes
    may write it at once: the last one to end wins.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with naming(path):
            yield fresh
            os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file; a reader sees what it held before, or all of `text`."""
    with atomic_file(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder; its files move to `folder` when the block succeeds.

    The ``.inter`` moves last, so that where it is all others are.

    Raises:
        UserError: `folder` cannot be written.
    """
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as fresh:
            yield Path(fresh)
            folder.mkdir(exist_ok=True)
            for file in sorted(Path(fresh).iterdir(), key=lambda file: file.suffix == ".inter"):
                os.replace(file, folder / file.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
