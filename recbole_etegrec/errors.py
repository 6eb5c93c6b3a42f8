"""Exceptions whose message is shown to the user, and hints for misspelt names."""

import errno
import os
import re
import signal
from collections.abc import Iterable
from difflib import get_close_matches

# Exceptions of the hub's client where there is no network.
_UNREACHABLE = {
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "ConnectError",
    "ConnectionError",
    "ConnectTimeout",
    "ReadTimeout",
}


class UserError(Exception):
    """Input that the user can mend.

    The message is one line: the key or file, what was found, and what to do about it.
    """


class TrainingError(Exception):
    """Training cannot go on; the message says why, what is kept, and what to change."""


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM ended the run; the message says where it stood.

    Attributes:
        told: whether the log has said so already.
    """

    told = False

    def __init__(self, number: int, message: str):
        super().__init__(f"{signal.Signals(number).name}: {message}")
        self.number = number


# What the user can mend: a full or write-protected disk, a quota, a limit, a missing permission.
_MENDABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
}


def os_error(error: BaseException, path: object = None) -> OSError | None:
    """The error of the operating system that a failed write is about, with the name of its file.

    Libraries in other languages raise errors of their own, with the number in their text; torch
    says only that its writer failed.

    Args:
        path: of the file, where the error does not name it.
    """
    if isinstance(error, OSError):
        number, path = error.errno, error.filename or path
    elif found := re.search(r"os error (\d+)|Errno (\d+)", str(error)):
        number = int(found[1] or found[2])
    elif re.search("PytorchStreamWriter|iostream error|unexpected pos", str(error)):
        number = errno.ENOSPC
    else:
        return None
    return None if number is None else OSError(number, os.strerror(number), path and str(path))


def unwritable(error: BaseException) -> str | None:
    """What to say of a write that failed for want of room or permission; None of other errors."""
    found = os_error(error)
    if found is None or found.errno not in _MENDABLE:
        return None
    return (
        f"{found.filename or 'the output'}: {found.strerror}: make room there or give permission, "
        "then repeat the command (a run of the plugin's models goes on with --resume=RUN_DIR)"
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the hint ``"; did you mean 'x'?"`` for the closest of `known`, or nothing.

    Where none is close, it is the first whose words have these initials: ``lr`` is `learning_rate`.
    """
    spelling, typed = {str(word).lower(): str(word) for word in known}, str(name).lower()
    match = get_close_matches(typed, sorted(spelling), n=1)
    match = match or [word for word in sorted(spelling) if "_" in word and _initials(word) == typed]
    return f"; did you mean '{spelling[match[0]]}'?" if match else ""


def _initials(word: str) -> str:
    return "".join(part[:1] for part in word.split("_"))


def hub_refusal(key: str, model: str, error: Exception, part: str = "") -> UserError:
    """Says in one line why the model that the key `key` names could not be loaded.

    Args:
        part: what of the model it was, if not all of it.
    """
    if isinstance(error, UserError):
        return error
    causes, cause = [], error
    while cause is not None:
        causes.append(type(cause).__name__)
        cause = cause.__cause__ or cause.__context__
    if "GatedRepoError" in causes:
        reason = (
            f"the model is gated: accept its terms at https://huggingface.co/{model}, then "
            "log in with `hf auth login` or set HF_TOKEN"
        )
    elif "RepositoryNotFoundError" in causes:
        reason = "no such directory or file here, and no such model on the hub (or a private one)"
    elif not _UNREACHABLE.isdisjoint(causes):
        reason = (
            "not on this machine, and the hub cannot be reached: give a directory that holds it, "
            f"or run `hf download {model}` where there is a network"
        )
    else:
        reason = " ".join(str(error).split())[:300]
    return UserError(f"{key} ({model}{part and ', '}{part}): {reason}")
