"""Counting the bytes that some work holds, on tensors that have no data."""

import weakref
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class AliveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make and that are still alive.

    Args:
        known: tensors that were there before, and are not counted.
        on_gpu: whether dropout keeps a byte for each number that it may drop, as GPUs do, and not
            another number.
    """

    def __init__(self, known: Iterator[torch.Tensor], on_gpu: bool):
        super().__init__()
        self.now = self.peak = 0
        self.on_gpu = on_gpu
        self.sizes = {t.untyped_storage()._cdata: 0 for t in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        if self.on_gpu and func is torch.ops.aten.bernoulli_.float:
            key = result.untyped_storage()._cdata
            self.now += result.numel() - self.sizes[key]
            self.sizes[key] = result.numel()
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, storage._cdata)

    def _free(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def without_data(module: nn.Module) -> None:
    """Put tensors without data, on the CPU as far as anything can tell, in place of all tensors."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
                    if isinstance(tensor, nn.Parameter):
                        empty = nn.Parameter(empty, tensor.requires_grad)
                    tensors[name] = empty
