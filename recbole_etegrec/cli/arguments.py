"""How a command line is read: by argparse, which is told the flags of a command and keys of a run.

``--key value`` and ``--key=value`` are the same for all of them. Nothing heavy is imported.
"""

from argparse import SUPPRESS, Action, ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, NoReturn

from recbole_etegrec.errors import UserError, nearest

PROGRAM = "recbole-etegrec"
_FORM = "expected --key=value or --key value"
_TRUTH = ("true", "false")


class Flag(NamedTuple):
    """An argument with dashes.

    Attributes:
        name: without the dashes.
        default: as the help shows it; empty where there is none.
        value: what the help calls the value.
        lone: what the flag stands for without a value; empty where it needs one.
        required: whether the help says so; the command refuses to do without it.
    """

    name: str
    help: str
    default: str = ""
    value: str = "TEXT"
    lone: str = ""
    required: bool = False


class Command(NamedTuple):
    """What is typed after the name of a command.

    Attributes:
        summary: what it does, in a line.
        places: the arguments without dashes, which come in this order, and their help.
        several: how often the last of them may come, in the words of argparse: ``+`` or ``*``;
            empty: once.
        keys: of what the keys are that may be given too, if any may.
        instead: the flags that are meant by names of keys that would do nothing here.
        examples: without the program.
        more: what else the help says.
    """

    summary: str
    flags: tuple[Flag, ...] = ()
    places: tuple[tuple[str, str], ...] = ()
    several: str = ""
    keys: str = ""
    instead: tuple[tuple[str, str], ...] = ()
    examples: tuple[str, ...] = ()
    more: str = ""


class Arguments(NamedTuple):
    """Attributes: the arguments without dashes, and those with them by name, as text."""

    places: list[str]
    values: dict[str, str]


class _Once(Action):
    """Stores a value, and refuses another for the same name."""

    def __call__(self, parser: ArgumentParser, into: Namespace, value: str, _option=None) -> None:
        if getattr(into, self.dest, value) != value:
            raise UserError(f"--{self.dest} is given twice: {getattr(into, self.dest)} and {value}")
        setattr(into, self.dest, value)


class _Formatter(RawDescriptionHelpFormatter):
    """Shows a flag that may stand alone without a value."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def _format_action_invocation(self, action: Action) -> str:
        lone = action.option_strings and action.nargs == "?" and not action.metavar
        return action.option_strings[0] if lone else super()._format_action_invocation(action)


class _Parser(ArgumentParser):
    """argparse with refusals of this package's kind.

    Attributes:
        places: the arguments without dashes, and their help.
    """

    places: Mapping[str, str] = MappingProxyType({})

    def error(self, message: str) -> NoReturn:
        missing = message.removeprefix("the following arguments are required: ")
        if missing != message:
            message = f"expected {self.places[missing.split(', ')[0]]}"
        raise UserError(f"{self.prog.removeprefix(PROGRAM).strip()}: {message} (see --help)")


def read(name: str, command: Command, arguments: Sequence[str]) -> Arguments:
    """Read what was typed after a command; ``--help`` prints its help, and ends the program.

    Raises:
        UserError: an argument is missing, has another form, is given twice, or is no flag of a
            command that takes no keys. Of keys, :func:`check_names` refuses those that are unknown.
        SystemExit: after the help.
    """
    keys = {a[2:].partition("=")[0] for a in arguments if a.startswith("--")} - {"", "help"}
    if not command.keys:
        check_names(name, command, keys)
    parser = _parser(name, command, keys)
    found, unknown = parser.parse_known_intermixed_args([*_with_values(command, arguments)])
    if unknown:
        raise UserError(f"argument '{unknown[0]}': {_FORM}, several values as A,B (see --help)")
    values = vars(found)
    places = [values.pop(f"place {place}", []) for place, _ in command.places]
    return Arguments(places[0] if command.several else places, values)


def check_names(
    name: str, command: Command, typed: Iterable[str], keys: Collection[str] = ()
) -> None:
    """Refuse arguments that are neither flags of a command nor keys.

    Raises:
        UserError: the first of them, with the name that is nearest.
    """
    flags, meant = {flag.name for flag in command.flags}, dict(command.instead)
    for argument in typed:
        if argument in flags or (argument in keys and argument not in meant):
            continue
        hint = nearest(argument, {*flags, *keys})
        hint = f"; did you mean '{meant[argument]}'?" if argument in meant else hint
        raise UserError(f"{name}: unknown argument --{argument}{hint}")


def _parser(name: str, command: Command, keys: Collection[str]) -> ArgumentParser:
    parser = _Parser(
        f"{PROGRAM} {name}",
        usage=_usage(name, command),
        description=command.summary,
        epilog=_epilog(name, command),
        formatter_class=_Formatter,
        allow_abbrev=False,
        argument_default=SUPPRESS,
    )
    parser.places = dict(command.places)
    for number, (place, text) in enumerate(command.places, 1):
        many = command.several if number == len(command.places) else ""
        parser.add_argument(f"place {place}", metavar=place, help=text, nargs=many or None)
    for flag in command.flags:
        shown = flag.help.replace("%", "%%") + " (required)" * flag.required
        parser.add_argument(
            f"--{flag.name}",
            dest=flag.name,
            action=_Once,
            nargs="?" if flag.lone else None,
            metavar="" if flag.lone and flag.value == "TEXT" else flag.value,
            help=f"{shown} (default: {flag.default})" if flag.default else shown,
        )
    for key in sorted({*keys} - {flag.name for flag in command.flags}):
        parser.add_argument(f"--{key}", dest=key, action=_Once, help=SUPPRESS)
    return parser


def _usage(name: str, command: Command) -> str:
    places = "".join(f" {place}" for place, _ in command.places) + " ..." * bool(command.several)
    places = f" [{places[1:]}]" if command.several == "*" else places
    flags = " [--FLAG VALUE ...]" if command.flags else ""
    return f"%(prog)s{places}{flags}{' [--KEY VALUE ...]' if command.keys else ''}"


def _epilog(name: str, command: Command) -> str:
    keys = f"KEY is any key of {command.keys}.\n--key=value and --key value are the same."
    examples = "\n".join(f"  {example}" for example in command.examples)
    parts = (keys if command.keys else "", command.more, f"Examples:\n{examples}")
    return "\n\n".join(part for part in parts if part).replace("%", "%%")


def _with_values(command: Command, arguments: Sequence[str]) -> Iterator[str]:
    """Give flags that stand alone their value: argparse would take what follows for it.

    Raises:
        UserError: another argument has no value.
    """
    lone = {f"--{flag.name}": flag.lone for flag in command.flags if flag.lone}
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=False):
        last = following.startswith("--")
        taken = following.lower() in _TRUTH if command.places else not last
        if argument in lone and not taken:
            argument = f"{argument}={lone[argument]}"
        elif argument.startswith("--") and "=" not in argument and last and argument != "--help":
            names = [*(flag.name for flag in command.flags), "help"]
            hint = "" if argument[2:] in names else nearest(argument[2:], names)
            raise UserError(f"argument '{argument}': {_FORM}{hint} (see --help)")
        yield argument
