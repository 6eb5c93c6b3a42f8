"""SIGINT and SIGTERM: a training step is finished and saved first, anything else ends at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator

from recbole_etegrec.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Handles the signals while its ``with`` block lasts.

    Args:
        accelerator: processes must agree to stop, or some would wait for ever.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.number = 0  # of the signal that waits
        self.waits = False

    def __enter__(self) -> "Interruption":
        self.former = {}
        if threading.current_thread() is threading.main_thread():
            self.former = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Signals wait until `requested` is asked; a second one does not."""
        self.waits = True
        try:
            yield
        finally:
            self.waits = False
        if self.number:  # it came after the last question
            raise Interrupted(self.number, "stopped at once")

    def requested(self) -> int:
        """The signal that any process has received, or 0."""
        if self.accelerator.num_processes == 1:
            return self.number
        number = torch.tensor([self.number], device=self.accelerator.device)
        return int(self.accelerator.gather(number).max())

    def _handle(self, number: int, _frame) -> None:
        if not self.waits or self.number:
            raise Interrupted(number, "stopped at once")
        self.number = number
