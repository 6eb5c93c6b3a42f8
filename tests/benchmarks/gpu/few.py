"""Few users: what a request and a decoding step take, recorded and launched kernel by kernel."""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import torch
from recbole.data.interaction import Interaction

from recbole_etegrec.decoding.batch import encode_items
from recbole_etegrec.decoding.recorded import RecordedSearch
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.recommender import autocast
from recbole_etegrec.recommender.backbone import cached_tensors
from tests.benchmarks.gpu.measure import now

CALLS = 20  # of which the median is told
STEP_SECONDS, REQUEST_SECONDS = 0.010, 0.060  # at most, of a decoder of 7 billion weights


class _State(NamedTuple):
    state: torch.Tensor


@torch.no_grad()
def few_users(model: ETEGRecLlama, rows: Interaction, calls: int = CALLS) -> dict:
    """Seconds of a request, of its histories alone, and of a step of what follows.

    A step ends with its codes chosen. It cannot take less than to read all weights once, which
    whoever knows the device's rate may set beside it.

    Args:
        rows: of the users, on the device of the model.
    """
    model, ranker, device = model.eval(), model.ranker, model.device
    recommender, items = model.recommender, rows[model.fields.history]
    items = items[:, : int(rows[model.fields.length].max())]

    def encode(history: torch.Tensor) -> _State:
        return _State(encode_items(recommender, model.codes, history).state)

    recorded = RecordedSearch(lambda batch, _: encode(batch.items), (), device)
    width, figures = ranker.width(10), {}
    with autocast(model.precision, device.type):
        for how, search, read in (
            ("launched", _launched(ranker), encode),
            ("recorded", ranker.find_recorded, lambda history: recorded(history, 0, None)),
        ):
            whole = _median(lambda s=search: s(rows, width, None), device, calls)
            histories = _median(lambda r=read: r(items), device, calls)
            steps = model.codes.table.shape[1] - 1 if hasattr(ranker, "num_beams") else 1
            figures |= {
                f"request_{how}": whole,
                f"histories_{how}": histories,
                f"step_{how}": (whole - histories) / steps,
            }
        history = ranker.encode(rows)
    weights = sum(p.numel() * p.element_size() for p in recommender.backbone.parameters())
    figures["read_bytes"] = weights + sum(_bytes(t) for t in cached_tensors(history.cache))
    return figures


def _launched(ranker) -> Callable:
    def search(rows: Interaction, width: int, excluded):
        return ranker.search(ranker.encode(rows), width, excluded)

    return search


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _median(work: Callable, device: torch.device, calls: int) -> float:
    """Seconds of a call, once it has been computed and recorded."""
    seconds = []
    for _ in range(calls + 2):
        started = now(device)
        work()
        seconds.append(now(device) - started)
    return statistics.median(seconds[2:])
