"""A run logs to stderr and to the log in its directory."""

import logging
import re
import sys

from recbole_etegrec.storage.printable import printable
from recbole_etegrec.storage.run_directory import RunDirectory

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_handlers: list[logging.Handler] = []


class _PlainFormatter(logging.Formatter):
    """Removes the colours that RecBole writes into its messages, and all else that is not shown."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(_COLOURS.sub("", super().format(record)))


def start_logging(run_dir: RunDirectory | None, level: str | None = "INFO") -> None:
    """Log to stderr and to the run's log, in place of an earlier run's handlers.

    Args:
        run_dir: None on all processes but the main one, which then log only errors.
        level: the name of a level, RecBole's key `state`; an unknown name stands for INFO.
    """
    root = logging.getLogger()
    while _handlers:
        handler = _handlers.pop()
        root.removeHandler(handler)
        handler.close()
    formatter = _PlainFormatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    _handlers.append(logging.StreamHandler(sys.stderr))
    if run_dir is not None:
        _handlers.append(logging.FileHandler(run_dir.log))
    for handler in _handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    number = logging.getLevelName("ERROR" if run_dir is None else str(level).upper())
    root.setLevel(number if isinstance(number, int) else logging.INFO)
