"""Exceptions whose message is shown to the user, and hints for misspelt names."""

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
    """SIGINT or SIGTERM ended the run; the message says where it stood."""

    def __init__(self, number: int, message: str):
        super().__init__(f"{signal.Signals(number).name}: {message}")
        self.number = number


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the hint ``"; did you mean 'x'?"`` for the closest of `known`, or nothing."""
    spelling = {str(word).lower(): str(word) for word in known}
    match = get_close_matches(str(name).lower(), sorted(spelling), n=1)
    return f"; did you mean '{spelling[match[0]]}'?" if match else ""


def hub_refusal(key: str, model: str, error: Exception) -> UserError:
    """Says in one line why the model that the key `key` names could not be loaded."""
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
    return UserError(f"{key} ({model}): {reason}")
