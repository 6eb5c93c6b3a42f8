"""A function of a batch, recorded as CUDA graphs: its kernels are launched all at once.

A small model's kernels take less time than Python takes to launch them. A graph holds the kernels
of one call; replaying it on other values takes one launch. It knows nothing of models, but that
whoever gives the function keeps to this:

- all that it reads beside the batch stays in its place, so weights are changed in place;
- it reads nothing back from the device, and makes no tensor from a Python number there;
- its outputs are used, or copied, before the next call, which may write over them.
"""

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from recbole_etegrec.errors import TrainingError

_MOST_FORMS = 256  # further ones are computed as ever: a graph takes some MiB


class _Recording(NamedTuple):
    batch: Any  # the tensors that the graph reads
    graph: Any  # torch.cuda.CUDAGraph
    outputs: Any  # the tensors that it writes


class CapturedStep:
    """Calls a function, by a recording where there is one.

    The first batch of a form is computed as ever, which is the warm-up that CUDA wants; at the
    second a graph is recorded. So each call is computed once, on any device. A form is the shapes
    and types of the batch's tensors, and the values of all else in it. Random numbers follow from
    the seed as they do without a recording.

    Args:
        function: of a batch, a named tuple, on the device, and of the kind of step.
        device: batches are brought to it.
        on: whether to record; if not, and on the CPU, the function is called and nothing else.
        key: of the configuration that turns recording on, for an error to name.
    """

    def __init__(
        self,
        function: Callable[[Any, Hashable], Any],
        device: torch.device,
        *,
        on: bool = True,
        key: str = "cuda_graphs",
    ):
        self.function, self.device, self.key = function, device, key
        self.on = on and device.type == "cuda"
        self.met: set[Hashable] = set()
        self.recordings: dict[Hashable, _Recording] = {}
        if self.on:
            # Memory is shared, for only one graph runs at a time; warm-ups and recordings have a
            # stream of their own, where nothing else waits.
            self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream(device)

    def __call__(self, batch: Any, kind: Hashable = None) -> Any:
        """What the function gives.

        Args:
            kind: what else the function depends on.

        Raises:
            TrainingError: the function cannot be recorded.
        """
        if not self.on:
            return self.function(_moved(batch, self.device), kind)
        form = (kind, *map(_form, batch))
        if form not in self.recordings:
            if form not in self.met:
                if len(self.met) < _MOST_FORMS:
                    self.met.add(form)
                return self._compute(batch, kind)
            self.recordings[form] = self._record(batch, kind)
        recording = self.recordings[form]
        for place, value in zip(recording.batch, batch, strict=True):
            if torch.is_tensor(place):
                place.copy_(_pinned(value), non_blocking=True)
        recording.graph.replay()
        return recording.outputs

    def _compute(self, batch: Any, kind: Hashable) -> Any:
        """A call without a recording, on the stream of recordings."""
        batch = _moved(batch, self.device)
        present = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(present)
        with torch.cuda.stream(self.stream):
            outputs = self.function(batch, kind)
        present.wait_stream(self.stream)
        return outputs

    def _record(self, batch: Any, kind: Hashable) -> _Recording:
        """A recording; nothing is computed by it."""
        batch = batch._make(
            v.to(self.device, copy=True) if torch.is_tensor(v) else v for v in batch
        )
        graph = torch.cuda.CUDAGraph()
        try:
            with (
                _no_garbage_collection(),
                torch.cuda.graph(
                    graph,
                    pool=self.pool,
                    stream=self.stream,
                    capture_error_mode="thread_local",  # others may go on meanwhile
                ),
            ):
                outputs = self.function(batch, kind)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise TrainingError(
                f"{self.key} (True): a step cannot be recorded ({reason}): set it to False"
            ) from error
        return _Recording(batch, graph, outputs)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Free nothing in circles meanwhile: a graph of an earlier step would end the recording."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _form(value: Any) -> Hashable:
    return (tuple(value.shape), value.dtype) if torch.is_tensor(value) else value


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor where the device can fetch it while Python goes on."""
    return tensor.pin_memory() if tensor.device.type == "cpu" and tensor.numel() else tensor


def _moved(batch: Any, device: torch.device) -> Any:
    if device.type != "cuda":
        return batch._make(v.to(device) if torch.is_tensor(v) else v for v in batch)
    return batch._make(
        _pinned(v).to(device, non_blocking=True) if torch.is_tensor(v) else v for v in batch
    )
