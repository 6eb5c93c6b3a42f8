"""The rows of tasks: which there are, which of them an epoch has, and what stands in them."""

import logging
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from recbole_etegrec.data.sequences import Windows, make_prefixes
from recbole_etegrec.data.tasks import TASKS, Task
from recbole_etegrec.data.tasks.batch import Row, TaskBatch, task_batches
from recbole_etegrec.data.tasks.prompts import Prompt
from recbole_etegrec.data.tasks.texts import ItemTexts, Vocabulary

logger = logging.getLogger(__name__)


class TaskSteps(NamedTuple):
    """The rows of an epoch.

    Attributes:
        rows: numbers of the rows of each step.
        a_step: what each task asks for in a step on average ``[K]``.
    """

    rows: list[np.ndarray]
    a_step: np.ndarray


class _Rows(NamedTuple):
    """Rows of one task.

    Attributes:
        number: of the task.
        start: where the history of each begins among the interactions; none: 0 ``[R]``.
        at: where it ends, and its target is; of a row of one item the item ``[R]``.
        length: tokens ``[R]``.
        asked: items or tokens of text that are asked for ``[R]``.
    """

    number: np.ndarray
    start: np.ndarray
    at: np.ndarray
    length: np.ndarray
    asked: np.ndarray


class TaskRows:
    """All rows that tasks have, and the steps that an epoch makes of them.

    Items without a text have no row that would need it, and are left out of histories of titles.

    Args:
        prompts: of the tasks, by name.
        between: what stands between titles.
        texts: of all items by field, ``title`` and ``description``, empty where there is none.
        vocabulary: writes texts.
        items: of the training part, sequence by sequence ``[I]``.
        windows: of the training part.
        code_length: codes an item ``L``.
        history: items of a history at most.
        most: tokens of a text at most.
        budget: tokens of a step at most, but for one row of each task that may pass it.
        seed: of the order of rows.
    """

    def __init__(
        self,
        prompts: Mapping[str, Prompt],
        between: str,
        texts: Mapping[str, list[str]],
        vocabulary: Vocabulary,
        items: np.ndarray,
        windows: Windows,
        *,
        code_length: int,
        history: int,
        most: int,
        budget: int,
        seed: int,
    ):
        self.names, self.prompts, self.vocabulary = list(prompts), prompts, vocabulary
        self.texts, self.most, self.items = texts, most, items
        self.code_length, self.budget, self.seed = code_length, budget, seed
        self._written: dict[tuple[str, bool], ItemTexts] = {}
        pieces = [piece for p in prompts.values() for piece in (p.before, p.after)]
        encoded = iter(vocabulary.encode([*pieces, between]))
        self._pieces = {name: (next(encoded), next(encoded)) for name in prompts}
        self._between = next(encoded)
        histories = make_prefixes(windows, history)
        parts = [self._rows_of(n, name, histories) for n, name in enumerate(self.names)]
        self.rows = _Rows(*map(np.concatenate, zip(*parts, strict=True)))

    def __len__(self) -> int:
        return len(self.rows.at)

    # Which rows there are -------------------------------------------------------------------------

    def _rows_of(self, number: int, name: str, histories: Windows) -> _Rows:
        task, catalogue = TASKS[name], len(next(iter(self.texts.values())))
        target = self._target_lengths(name, catalogue)
        if task.after_history:
            start, at = histories.start, histories.supervised_from
            source, asked = self._history_lengths(name, start, at), target[self.items[at]]
        else:
            at = np.arange(1, catalogue)
            start, source, asked = np.zeros_like(at), self._source_lengths(name)[1:], target[1:]
        keep = (source > 0) & (asked > 0)
        self._say(name, task, keep)
        fixed = len(self.vocabulary.begin) + sum(map(len, self._pieces[name]))
        length = fixed + source + asked
        if task.target == "codes":
            asked = asked // self.code_length
        columns = (start, at, length, asked)
        return _Rows(np.full(int(keep.sum()), number), *(column[keep] for column in columns))

    def _say(self, name: str, task: Task, keep: np.ndarray) -> None:
        what = "rows" if task.after_history else "items"
        out = int((~keep).sum())
        note = f", {out} of {len(keep)} {what} without a text left out" if out else ""
        logger.info("task %s: %d rows%s", name, len(keep) - out, note)

    def _target_lengths(self, name: str, catalogue: int) -> np.ndarray:
        """Tokens of each item as the target of a task ``[N]``; 0 where it cannot be one."""
        if TASKS[name].target == "codes":
            return np.full(catalogue, self.code_length)
        lengths = self._text("title", self.prompts[name].spaced_target).lengths
        return np.where(lengths > 0, lengths + len(self.vocabulary.end), 0)

    def _source_lengths(self, name: str) -> np.ndarray:
        """Tokens of each item as the source of a task ``[N]``."""
        source = TASKS[name].source
        if source == "item":
            return np.full(len(next(iter(self.texts.values()))), self.code_length)
        return self._text(source, self.prompts[name].spaced_source).lengths

    def _history_lengths(self, name: str, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """Tokens of each history as the source of a task ``[R]``."""
        if TASKS[name].source == "items":
            return (end - start) * self.code_length
        each = self._text("title", self.prompts[name].spaced_source).lengths[self.items]
        tokens, titles = (np.append(0, column.cumsum()) for column in (each, each > 0))
        several = np.maximum(titles[end] - titles[start] - 1, 0)
        return tokens[end] - tokens[start] + several * len(self._between)

    def _text(self, field: str, spaced: bool) -> ItemTexts:
        key = field, spaced
        if key not in self._written:
            self._written[key] = ItemTexts(
                self.texts[field], self.vocabulary, self.most, spaced=spaced
            )
        return self._written[key]

    # What an epoch has ----------------------------------------------------------------------------

    def draw(self, epoch: int, steps: int | None = None) -> TaskSteps:
        """The rows of an epoch in steps; all of them, or as many as fit.

        Where not all fit, tasks have equal shares of the tokens; one that needs less leaves the
        rest to the others.

        Args:
            steps: that there are; None: as many as all rows need.
        """
        rng = np.random.default_rng((self.seed, epoch, 1))
        number, length = self.rows.number, self.rows.length
        whole = np.bincount(number, weights=length, minlength=len(self.names))
        if steps is None:
            steps = max(math.ceil(whole.sum() / self.budget), 1)
        parts: list[list[np.ndarray]] = [[] for _ in range(steps)]
        asked = np.zeros(len(self.names))
        for task, tokens in enumerate(shares(whole, self.budget * steps)):
            order = rng.permutation(np.flatnonzero(number == task))
            fit = length[order].cumsum().searchsorted(tokens, side="right")
            order = order[: max(fit, 1)]
            begins = length[order].cumsum() - length[order]
            step = begins * steps // max(int(length[order].sum()), 1)
            cuts = step.searchsorted(np.arange(1, steps))
            for part, rows in zip(parts, np.split(order, cuts), strict=True):
                part.append(rows)
            asked[task] = self.rows.asked[order].sum()
        return TaskSteps([np.concatenate(part) for part in parts], np.maximum(asked / steps, 1e-6))

    def batches(self, steps: TaskSteps, step: int, parts: int) -> list[TaskBatch]:
        """The rows of a step as so many micro-batches."""
        rows = [self.row(number) for number in steps.rows[step].tolist()]
        return task_batches(rows, steps.a_step, self.code_length, parts)

    def row(self, number: int) -> Row:
        """What stands in a row."""
        task, start, at = (int(column[number]) for column in self.rows[:3])
        name = self.names[task]
        prompt, of = self.prompts[name], TASKS[name]
        before, after = self._pieces[name]
        item = int(self.items[at]) if of.after_history else at
        if of.source == "titles":
            source = self._titles(self.items[start:at].tolist(), prompt.spaced_source)
        elif of.source == "items":
            source = [slot for one in self.items[start:at].tolist() for slot in self.codes(one)]
        elif of.source == "item":
            source = self.codes(item)
        else:
            source = self._text(of.source, prompt.spaced_source)[item]
        if of.target == "codes":
            target = self.codes(item)
        else:
            target = self._text("title", prompt.spaced_target)[item] + self.vocabulary.end
        slots = [*self.vocabulary.begin, *before, *source, *after, *target]
        return Row(slots, len(target), task)

    def codes(self, item: int) -> list[int]:
        """The slots of an item's codes."""
        first = 1 + item * self.code_length
        return [-slot for slot in range(first, first + self.code_length)]

    def _titles(self, items: list[int], spaced: bool) -> list[int]:
        titles = [title for item in items if (title := self._text("title", spaced)[item])]
        joined = list(titles[0])
        for title in titles[1:]:
            joined += [*self._between, *title]
        return joined


def shares(needs: np.ndarray, there_is: float) -> np.ndarray:
    """Equal shares of what there is, none above its need ``[K]``."""
    given = np.zeros(len(needs))
    for left, task in zip(range(len(needs), 0, -1), np.argsort(needs, kind="stable"), strict=True):
        given[task] = min(needs[task], (there_is - given.sum()) / left)
    return given
