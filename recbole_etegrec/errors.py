"""The exceptions a user is meant to see, and the hint that goes with a misspelt name."""

import signal
from collections.abc import Iterable
from difflib import get_close_matches


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
    """The hint ``"; did you mean 'x'?"`` for the closest of `known`, or an empty string."""
    spelling = {str(word).lower(): str(word) for word in known}
    match = get_close_matches(str(name).lower(), sorted(spelling), n=1)
    return f"; did you mean '{spelling[match[0]]}'?" if match else ""
