"""Rows of texts and items mixed, as training reads them: items by their ids, never by codes."""

from typing import NamedTuple

import numpy as np
import torch

_WIDTH = 256  # tokens that rows are packed into, or as many as the longest has


class Row(NamedTuple):
    """One row.

    Attributes:
        slots: a token of text as its number; code ``l`` of item ``i`` as ``-(1 + i L + l)``.
        asked: how many of the last slots are asked for.
        task: number of its task.
    """

    slots: list[int]
    asked: int
    task: int


class TaskBatch(NamedTuple):
    """Rows of a micro-batch, several of them in one packed row where there is room.

    A slot that is asked for is predicted from the slot before it. Indices are flat, into
    ``[B, S]``.

    Attributes:
        slots: see :class:`Row`; padding is token 0 ``[B, S]``.
        positions: of each slot in its own row ``[B, S]``.
        item_index: the slots that are last codes of items ``[k]``.
        items: these items ``[k]``.
        code_index: the slots of codes of items that are asked for ``[n, L]``.
        code_items: these items ``[n]``.
        code_task: numbers of their tasks ``[n]``.
        text_index: the slots of text that are asked for ``[m]``.
        text_task: numbers of their tasks ``[m]``.
        a_step: what each task asks for in a step on average, items or tokens of text ``[K]``.
        tokens: of the whole step, padding not counted.
        packed: whether rows share packed rows.
    """

    slots: torch.Tensor
    positions: torch.Tensor
    item_index: torch.Tensor
    items: torch.Tensor
    code_index: torch.Tensor
    code_items: torch.Tensor
    code_task: torch.Tensor
    text_index: torch.Tensor
    text_task: torch.Tensor
    a_step: torch.Tensor
    tokens: int
    packed: bool

    def to(self, device: torch.device, non_blocking: bool = False) -> "TaskBatch":
        """The same rows on a device."""
        return TaskBatch(
            *(x.to(device, non_blocking=non_blocking) if torch.is_tensor(x) else x for x in self)
        )


def pack(lengths: list[int], width: int) -> list[list[int]]:
    """Which rows share a packed row of a width: each goes, the longest first, where it fits first.

    A row that is longer than the width has one for itself.
    """
    packs: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = next((n for n, left in enumerate(room) if left >= lengths[row]), len(packs))
        if place == len(packs):
            packs.append([])
            room.append(width)
        packs[place].append(row)
        room[place] -= lengths[row]
    return packs


def task_batches(
    rows: list[Row], a_step: np.ndarray, code_length: int, parts: int
) -> list[TaskBatch]:
    """Rows of a step as so many micro-batches; those without a row have a token that counts not."""
    lengths = [len(row.slots) for row in rows]
    packs = pack(lengths, max([_WIDTH, *lengths]))
    shared = [[rows[n] for n in one] for one in packs]
    tokens = sum(lengths)
    return [_batch(shared[part::parts], a_step, code_length, tokens) for part in range(parts)]


def _batch(packs: list[list[Row]], a_step: np.ndarray, code_length: int, tokens: int) -> TaskBatch:
    width = max([1, *(sum(len(row.slots) for row in one) for one in packs)])
    slots = np.zeros((max(len(packs), 1), width), dtype=np.int64)
    positions = np.zeros_like(slots)
    codes: list[tuple[int, int]] = []  # of an item that is asked for: its first slot, its task
    texts: list[tuple[int, int]] = []
    for number, one in enumerate(packs):
        begin = 0
        for row in one:
            end = begin + len(row.slots)
            slots[number, begin:end], positions[number, begin:end] = row.slots, range(end - begin)
            first = number * width + end - row.asked
            if row.slots[-1] < 0:
                codes.append((first, row.task))
            else:
                texts += [(first + place, row.task) for place in range(row.asked)]
            begin = end
    code_index, code_task = np.array(codes, dtype=np.int64).reshape(-1, 2).T
    text_index, text_task = np.array(texts, dtype=np.int64).reshape(-1, 2).T
    packed = any(len(one) > 1 for one in packs)
    numbers = -1 - slots.reshape(-1)
    item_index = np.flatnonzero((numbers >= 0) & (numbers % code_length == code_length - 1))
    arrays = (slots, positions, item_index, numbers[item_index] // code_length)
    arrays += (code_index[:, None] + np.arange(code_length), numbers[code_index] // code_length)
    arrays += (code_task, text_index, text_task, a_step.astype(np.float32))
    tensors = (torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
    return TaskBatch(*tensors, tokens=tokens, packed=packed)
