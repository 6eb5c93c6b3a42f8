"""Tasks that tie texts to codes, for a pretrained decoder which knows texts.

The task that all others serve, from a history to the codes of the next item, is no entry here: it
is in every batch.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from recbole_etegrec.data.tasks.batch import TaskBatch

__all__ = ["TASKS", "Task", "TaskBatch", "tasks_of"]


class Task(NamedTuple):
    """What a task gives and asks for.

    Attributes:
        source: what is given, which is also the name that stands in braces in the prompt: the
            ``title`` or the ``description`` of an item, an ``item`` as its codes, or the
            ``titles`` or ``items`` (as codes) of a history.
        target: what is asked for, ``codes`` or ``title``: of the same item, or after a history of
            the next one.
        says: the task, as reports call it.
    """

    source: str
    target: str
    says: str

    @property
    def after_history(self) -> bool:
        """Whether a row is of a history and the item that comes next."""
        return self.source in ("titles", "items")


# By the names that they have in files of prompts too.
TASKS: dict[str, Task] = {
    "title_to_codes": Task("title", "codes", "Title to codes"),
    "description_to_codes": Task("description", "codes", "Description to codes"),
    "codes_to_title": Task("item", "title", "Codes to title"),
    "titles_to_codes": Task("titles", "codes", "Titles of a history to codes"),
    "codes_to_next_title": Task("items", "title", "Codes of a history to the next title"),
}


def tasks_of(config: Mapping[str, Any]) -> list[str]:
    """The tasks that a config gives a weight, in the order of the table."""
    weights = config["tasks"] or {}
    return [name for name in TASKS if weights.get(name)]
