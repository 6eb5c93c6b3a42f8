"""Answers requests that wait while the model is busy together, in one thread.

It knows no model and no HTTP: a question is anything that `work` answers.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class BusyError(Exception):
    """The queue of waiting questions is full."""


class WorkError(Exception):
    """The work on a batch raised an exception, which is logged."""


class Batcher(Generic[Question, Answer]):
    """Answers questions in batches; a batch is what came in while the one before was worked on.

    It is used as ``async with``, in the event loop whose tasks ask.

    Args:
        work: answers some questions, in their order; called in one thread, never twice at once.
        size: the most questions in a batch.
        room: the most questions that wait besides those that are worked on.
        seen: is called with the size of each batch.
    """

    def __init__(
        self,
        work: Callable[[list[Question]], list[Answer]],
        size: int,
        room: int,
        seen: Callable[[int], object],
    ):
        self._work, self._size, self._seen = work, size, seen
        self._queue: asyncio.Queue[tuple[Question, asyncio.Future[Answer]]] = asyncio.Queue(room)

    async def __aenter__(self) -> "Batcher[Question, Answer]":
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        self._thread.shutdown()

    @property
    def waiting(self) -> int:
        """The number of waiting questions."""
        return self._queue.qsize()

    async def ask(self, question: Question) -> Answer:
        """The answer to a question.

        Raises:
            BusyError: there is no room for it.
            WorkError: it, or another of its batch, could not be answered.
        """
        answer = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((question, answer))
        except asyncio.QueueFull:
            raise BusyError from None
        return await answer

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            while len(batch) < self._size and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            batch = [(question, answer) for question, answer in batch if not answer.done()]
            if batch:
                await self._answer(batch)

    async def _answer(self, batch: list[tuple[Question, "asyncio.Future[Answer]"]]) -> None:
        self._seen(len(batch))
        questions = [question for question, _ in batch]
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._thread, self._work, questions)
        except Exception:
            logger.exception("a batch of %d failed", len(batch))
            found = [None] * len(batch)
        for (_, answer), value in zip(batch, found, strict=True):
            if answer.done():  # who asked has gone
                continue
            if value is None:
                answer.set_exception(WorkError())
            else:
                answer.set_result(value)
