"""Searches of few users, recorded: their kernels take less time than Python takes to launch them.

A batch is padded to one of a few forms, each of which is recorded once: the histories, the steps
behind them with the cache that they fill, the trie and what is chosen are one graph, and one
launch. It knows nothing of what is searched.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from recbole_etegrec.captured_step import CapturedStep
from recbole_etegrec.data.seen_items import HistoryIndex

FEW = 32  # users: more of them leave a GPU no time to wait
_LENGTH = 8  # histories are as long as a multiple of it, of longer ones by an eighth or less


class Asked(NamedTuple):
    """A batch in one of the forms.

    Attributes:
        items: ids of histories, padded with 0 on the right ``[B, T]``.
        rows: of pairs that are not to be found ``[p]``.
        excluded: items of these; 0: none ``[p]``.
    """

    items: torch.Tensor
    rows: torch.Tensor
    excluded: torch.Tensor


class _Kind(NamedTuple):
    width: int
    autocast: bool
    dtype: torch.dtype


class RecordedSearch:
    """Calls a search of batches in their forms.

    Args:
        search: of a batch and a width, to tensors whose first dimension is that of the users; it
            keeps to what `CapturedStep` asks of a function.
        held: what recordings have as it is.
    """

    def __init__(
        self, search: Callable[[Asked, int], Any], held: tuple[Any, ...], device: torch.device
    ):
        self._search, self.held = search, held
        self.step = CapturedStep(self._run, device, key="record_searches")

    def __call__(self, items: torch.Tensor, width: int, excluded: HistoryIndex | None) -> Any:
        """What the search finds after histories ``[B, T]``.

        Args:
            excluded: pairs that are not to be found.
        """
        place = items.device.type
        kind = _Kind(width, torch.is_autocast_enabled(place), torch.get_autocast_dtype(place))
        found = self.step(in_form(items, excluded), kind)
        return found._make(part[: len(items)].clone() for part in found)

    def _run(self, batch: Asked, kind: _Kind) -> Any:
        # Autocast keeps weights that it has cast. The recording is to cast its own, once for all
        # steps, and nobody else is to have them: until it is replayed there is nothing in them.
        torch.clear_autocast_cache()
        try:
            with torch.autocast(batch.items.device.type, kind.dtype, enabled=kind.autocast):
                return self._search(batch, kind.width)
        finally:
            torch.clear_autocast_cache()


def in_form(items: torch.Tensor, excluded: HistoryIndex | None) -> Asked:
    """Histories ``[B, T]`` and pairs as one of the forms: the last user comes more than once."""
    users, length = rounded(len(items), 1), rounded(items.shape[1], _LENGTH)
    items = F.pad(items, (0, length - items.shape[1]))
    items = torch.cat([items, items[-1:].expand(users - len(items), -1)])
    pairs = users * length
    if excluded is None:
        return Asked(items, *items.new_zeros(2, pairs))
    more = max(pairs, 2 ** (len(excluded[0]) - 1).bit_length()) - len(excluded[0])
    return Asked(items, *(F.pad(part, (0, more)) for part in excluded))


def rounded(number: int, least: int) -> int:
    """The size of a form that has room: a multiple of some size that is not far above it."""
    power = 1 << max(number - 1, 0).bit_length()
    step = power if least == 1 else max(least, power // 8)
    return max(-(-number // step) * step, least)


def forms(longest: int, users: int) -> Iterator[tuple[int, int]]:
    """Users and items of the forms up to some size, each once."""
    lengths = {rounded(length, _LENGTH): length for length in range(1, longest + 1)}
    return ((1 << n, most) for n in range(users.bit_length()) for most in lengths.values())
