"""Prompts of tasks: a file of the user's language, read and checked."""

from pathlib import Path
from typing import NamedTuple

from recbole_etegrec.config.files import properties_dir, read_config_files
from recbole_etegrec.data.tasks import TASKS
from recbole_etegrec.errors import UserError

_BETWEEN = "between"


class Prompt(NamedTuple):
    """What stands before and after the source of a task; a space right before a text is its own.

    Attributes:
        before: the source.
        after: it, and before the target.
        spaced_source: whether a space comes before the source.
        spaced_target: whether one comes before the target.
    """

    before: str
    after: str
    spaced_source: bool
    spaced_target: bool


def read_prompts(name: str, tasks: list[str]) -> tuple[dict[str, Prompt], str]:
    """The prompts of some tasks, and what stands between the titles of a history.

    Args:
        name: of a file in ``properties/prompts``, or a path.

    Raises:
        UserError: there is no such file, or it has not the prompt of a task.
    """
    shipped = properties_dir() / "prompts" / f"{name}.yaml"
    path = shipped if shipped.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in shipped.parent.glob("*.yaml")))
        raise UserError(f"prompts ({name}): must be a file, or one of {known}")
    values = read_config_files([str(path)])
    between = values.get(_BETWEEN)
    if not isinstance(between, str):
        raise UserError(f"prompts: {path} has no text '{_BETWEEN}', which stands between titles")
    return {task: _prompt(path, values, task) for task in tasks}, between


def _prompt(path: Path, values: dict, task: str) -> Prompt:
    brace = "{" + TASKS[task].source + "}"
    text = values.get(task)
    if not isinstance(text, str) or text.count(brace) != 1:
        raise UserError(
            f"prompts: {path} must have a text '{task}' in which {brace} stands once, for what the "
            "task is given"
        )
    before, _, after = text.partition(brace)
    return Prompt(
        before.removesuffix(" "), after.removesuffix(" "), before.endswith(" "), after.endswith(" ")
    )
