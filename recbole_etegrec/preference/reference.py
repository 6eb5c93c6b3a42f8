"""The model of before, which the present one is held to."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class Reference:
    """The weights that a module had; they take the place of its own for as long as they are read.

    So a pretrained decoder that never learns is there once.

    Args:
        module: it may be trained further.
        state: the values of its parameters; those that are not in it have stayed as they are.
    """

    def __init__(self, module: nn.Module, state: Mapping[str, torch.Tensor]):
        self.pairs = [
            [parameter, state[name].to(parameter.device, parameter.dtype, copy=True)]
            for name, parameter in module.named_parameters()
            if name in state
        ]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the module have the weights of before; nothing may be trained meanwhile."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for pair in self.pairs:
            parameter, other = pair
            pair[1], parameter.data = parameter.data, other
