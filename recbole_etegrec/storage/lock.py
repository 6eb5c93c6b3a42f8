"""One process at a time writes to a folder or a file: who comes second is refused.

The operating system keeps a lock for as long as its process lives, so one that died holds nothing,
whatever files it has left.
"""

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from recbole_etegrec.errors import UserError

LOCK = ".lock"
_ATTEMPTS = 3
_held: set[Path] = set()  # by this process, which may hold again what it holds


@contextmanager
def held_folder(folder: Path, name: str) -> Iterator[None]:
    """Hold an existing folder whose files are written one by one; the lock lies in it.

    Args:
        name: what messages call it.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    with _held_by(folder.absolute() / LOCK, name):
        _clear(folder, "*")
        yield


@contextmanager
def held_output(path: Path) -> Iterator[None]:
    """Hold a file or folder that is put in its place when it is whole; the lock lies beside it.

    Raises:
        UserError: another process holds it, or its folder cannot be written.
    """
    path = path.absolute()
    with _held_by(path.with_name(f".{path.name}{LOCK}"), f"out {path}"):
        _clear(path.parent, glob.escape(path.name))
        yield


def refuse_held(folder: Path, name: str) -> None:
    """Look whether another process holds a folder, without holding it.

    Raises:
        UserError: it does.
    """
    lock = folder.absolute() / LOCK
    if lock.is_file():  # the lock of a dead process goes with this
        with _held_by(lock, name):
            pass


def strangers(folder: Path) -> list[str]:
    """The files of a folder, but for locks and what was left of writing; none where there is none.

    Raises:
        OSError: it is no folder, or cannot be read.
    """
    if not folder.exists():
        return []
    names = sorted(file.name for file in folder.iterdir())
    return [name for name in names if name != LOCK and not (name[0] == "." and name[-4:] == ".new")]


def _clear(folder: Path, pattern: str) -> None:
    """Delete what dead processes have left of files that `atomic_file` was writing."""
    for left in folder.glob(f".{pattern}.[0-9]*.new"):
        with suppress(OSError):
            left.unlink()


@contextmanager
def _held_by(lock: Path, name: str) -> Iterator[None]:
    if lock in _held:
        yield
        return
    try:
        holder = _acquired(lock)
    except OSError as error:
        raise UserError(f"{name}: cannot be written ({error.strerror or error})") from error
    if holder is None:
        raise UserError(
            f"{name}: another process is writing to it: wait until it has ended, or choose another"
        )
    _held.add(lock)
    try:
        yield
    finally:
        _held.discard(lock)
        with suppress(OSError):
            lock.unlink()
        holder.release()


def _acquired(lock: Path) -> FileLock | None:
    """The lock, or None if another process has it.

    A holder deletes its file before it lets go, so what was locked may be a file that is gone: the
    lock counts only if the file still stands there.
    """
    holder = FileLock(lock)
    for _ in range(_ATTEMPTS):
        lock.touch()
        known = _inode(lock)
        try:
            holder.acquire(timeout=0)
        except Timeout:
            return None
        if known is not None and _inode(lock) == known:
            return holder
        holder.release()
    return None


def _inode(path: Path) -> int | None:
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return None
