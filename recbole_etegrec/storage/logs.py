"""A run logs to stderr and to the log in its directory."""

import logging
import re
import sys
import threading
from contextlib import suppress

from recbole_etegrec.errors import unwritable
from recbole_etegrec.storage.printable import printable
from recbole_etegrec.storage.run_directory import RunDirectory

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_handlers: list[logging.Handler] = []


class _PlainFormatter(logging.Formatter):
    """Removes the colours that RecBole writes into its messages, and all else that is not shown."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(_COLOURS.sub("", super().format(record)))


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts short, which is said once, and does not end the run."""

    cut_short = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  logging's name
        """Say that lines are lost, and no traceback for each."""
        if not isinstance(sys.exc_info()[1], OSError):
            return super().handleError(record)
        if not self.cut_short:
            self.cut_short = True
            sys.stderr.write(f"{self.baseFilename}: cut short ({sys.exc_info()[1]})\n")

    def close(self) -> None:
        """Close the file, whether or not its last lines find room."""
        with suppress(OSError):
            super().close()


def _tell_of_thread(raised: threading.ExceptHookArgs) -> None:
    """Print what ends a thread, but for a full disk.

    TensorBoard writes in a thread, and raises its error again where the next point is added.
    """
    if raised.exc_value is None or unwritable(raised.exc_value) is None:
        threading.__excepthook__(raised)


def start_logging(run_dir: RunDirectory | None, level: str | None = "INFO") -> None:
    """Log to stderr and to the run's log, in place of an earlier run's handlers.

    Args:
        run_dir: None on all processes but the main one, which then log only errors.
        level: the name of a level, RecBole's key `state`; an unknown name stands for INFO.
    """
    threading.excepthook = _tell_of_thread
    root = logging.getLogger()
    while _handlers:
        handler = _handlers.pop()
        root.removeHandler(handler)
        handler.close()
    formatter = _PlainFormatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    _handlers.append(logging.StreamHandler(sys.stderr))
    if run_dir is not None:
        _handlers.append(_LogFile(run_dir.log))
    for handler in _handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    number = logging.getLevelName("ERROR" if run_dir is None else str(level).upper())
    root.setLevel(number if isinstance(number, int) else logging.INFO)
