"""How the command line of a benchmark is read."""

from collections.abc import Sequence

from recbole_etegrec.cli.arguments import Command, read


def parse_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """Keys of a run, and whatever else a benchmark asks for, by their names; values are texts.

    Raises:
        UserError: an argument has another form, or a key comes twice with different values.
    """
    return read("arguments", Command("", keys="a run"), arguments).values
