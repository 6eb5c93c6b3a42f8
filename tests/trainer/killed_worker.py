"""A command line in a process of its own, which may send itself a signal at a chosen call."""

import os
import signal
import sys
import threading
from importlib import import_module
from typing import NamedTuple

import torch
from tqdm import tqdm

from recbole_etegrec import cli, quick_start  # noqa: F401  slow to import: done before the fork


class Trap(NamedTuple):
    """Where the signal is sent: just before a call of a function.

    Attributes:
        function: ``module:name`` or ``module:Class.name``.
        call: which one, counted from 1.
        number: of the signal.
    """

    function: str
    call: int
    number: int = signal.SIGKILL


def work(arguments: list[str], log: str, trap: Trap | None) -> None:
    """Run a command line to its end, or to the trap; what it writes goes to a file."""
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # a killed process would leave the semaphore of tqdm's own
    if trap is not None:
        _set(trap)
    sys.exit(cli.main(arguments))


def _set(trap: Trap) -> None:
    module, _, path = trap.function.partition(":")
    *owners, name = path.split(".")
    owner = import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    function, calls = getattr(owner, name), 0

    def trapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == trap.call:
            os.kill(os.getpid(), trap.number)
        return function(*args, **kwargs)

    setattr(owner, name, trapped)
