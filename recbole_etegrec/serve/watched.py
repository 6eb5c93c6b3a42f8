"""What a server answers with, which is another model once items were added to a run or removed."""

import asyncio
import logging
from collections.abc import Callable
from os import stat_result
from typing import Any, NamedTuple

from recbole_etegrec.inference.catalogue import Catalogue
from recbole_etegrec.model.protocol import RankingModel
from recbole_etegrec.serve.answers import Answers, Query
from recbole_etegrec.serve.search import Search
from recbole_etegrec.storage.run_directory import RunDirectory

logger = logging.getLogger(__name__)

SECONDS = 2.0  # between two looks at a run

Loaded = tuple[RankingModel, Catalogue]


class Question(NamedTuple):
    """A query, whose ids are those of the answers that were there when it came."""

    answers: Answers
    query: Query


class Served:
    """A model with the names of its items.

    Args:
        renew: gives another model and its names where there are, else None; it may take long.
    """

    def __init__(
        self,
        model: RankingModel,
        catalogue: Catalogue,
        renew: Callable[[], Loaded | None] | None = None,
    ):
        self._renew = renew
        self._take(model, catalogue)

    def _take(self, model: RankingModel, catalogue: Catalogue) -> None:
        self.answers, self.search = Answers(model, catalogue), Search(catalogue)
        self.catalogue = catalogue

    async def watch(self) -> None:
        """Take what `renew` gives, again and again; what cannot be loaded is logged."""
        while self._renew is not None:
            await asyncio.sleep(SECONDS)
            try:
                if loaded := await asyncio.to_thread(self._renew):
                    self._take(*loaded)
                    logger.info("serving %d items", len(self.catalogue) - 1)
            except Exception:
                logger.exception("the run has changed and cannot be loaded: the model stays")

    @staticmethod
    def answer(questions: list[Question]) -> list[list[dict[str, Any]]]:
        """Answer questions in their order; those of one model are ranked together."""
        found: list[list[dict[str, Any]]] = [[]] * len(questions)
        for answers in {id(question.answers): question.answers for question in questions}.values():
            own = [n for n, question in enumerate(questions) if question.answers is answers]
            lists = answers([questions[number].query for number in own])
            for number, items in zip(own, lists, strict=True):
                found[number] = items
        return found


class RunWatch:
    """Loads a run anew when the items that were added to it are others.

    Args:
        load: of the run.
    """

    def __init__(self, directory: RunDirectory, load: Callable[[], Loaded]):
        self._directory, self._load = directory, load
        self._seen = self._stamp()

    def __call__(self) -> Loaded | None:
        """The run as it is now; None where it has not changed."""
        stamp = self._stamp()
        if stamp == self._seen:
            return None
        self._seen = stamp
        return self._load()

    def _stamp(self) -> tuple | None:
        try:
            found: stat_result = self._directory.added_items.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size
