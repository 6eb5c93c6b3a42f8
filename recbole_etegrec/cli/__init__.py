"""The command line: arguments in, an exit code out.

Nothing heavy is imported before the arguments are read, so that a typo is answered at once.
"""

import logging
import sys
from collections.abc import Sequence

from recbole_etegrec import __version__
from recbole_etegrec.cli.arguments import PROGRAM
from recbole_etegrec.cli.commands import HANDLERS
from recbole_etegrec.cli.table import GROUPS
from recbole_etegrec.config.files import require_recbole
from recbole_etegrec.errors import Interrupted, TrainingError, UserError, nearest, unwritable
from recbole_etegrec.storage.printable import one_line

__all__ = ["main"]

_EXIT_CODES = "Exit codes: 0 success, 2 input you can mend, 130 or 143 interrupted, 1 other errors."


def usage() -> str:
    """The help of the program: its commands, a line each."""
    lines = [f"usage: {PROGRAM} COMMAND ...", f"       {PROGRAM} COMMAND --help", ""]
    for title, commands in GROUPS.items():
        lines += [f"{title}:"]
        lines += [f"  {name:12} {command.summary}" for name, command in commands.items()]
        lines += [""]
    lines += [
        f"`{PROGRAM} --model=NAME ...` is short for `{PROGRAM} run --model=NAME ...`.",
        f"--version prints {__version__}. {_EXIT_CODES}",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None, default: str = "") -> int:
    """Run the command line; returns the exit code.

    Args:
        default: the command that arguments are of which name none.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(arguments, default)
        sys.stdout.flush()  # lest a full disk be noticed when nobody can say so any more
    except SystemExit as end:  # argparse has printed a help
        return int(end.code or 0)
    except UserError as error:
        sys.stderr.write(f"error: {one_line(str(error))}\n")
        return 2
    except TrainingError as error:
        sys.stderr.write(f"error: {one_line(str(error))}\n")
        return 1
    except Interrupted as error:
        if not error.told:
            sys.stderr.write(f"{one_line(str(error))}\n")
        return 128 + error.number
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except Exception as error:
        if isinstance(error, OSError) and (message := unwritable(error)):
            sys.stderr.write(f"error: {message}\n")
            return 2
        # The run's log, where there is one already, keeps the traceback too.
        logging.getLogger(__name__).exception("the run failed")
        return 1
    return 0


def _dispatch(arguments: list[str], default: str) -> None:
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    first = arguments[0] if arguments else ""
    require_recbole()
    if first in HANDLERS:
        HANDLERS[first](arguments[1:])
    elif first == "--version":
        sys.stdout.write(f"{PROGRAM} {__version__}\n")
    elif not default and first in ("", "-h", "--help"):
        sys.stdout.write(usage())
    elif not first or first.startswith("-"):
        HANDLERS[default or "run"](arguments)
    else:
        hint = nearest(first, HANDLERS) or f": must be one of {', '.join(HANDLERS)}"
        raise UserError(f"unknown command '{first}'{hint} (see --help)")
