"""The tokenizer of record: the one that gave the items the codes that they have.

Where the recommendation loss moves the codebooks on after codes were given (``codebook_update:
shared``), by the moved ones many items would get other codes. So what gave the codes is kept with
them, to give new items theirs.
"""

import torch
from torch import nn

from recbole_etegrec.tokenizer.base import Tokenizer


class TokenizerOfRecord(nn.Module):
    """A copy of a tokenizer's weights as buffers, which never learn and are saved with codes."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        for name, tensor in tokenizer.state_dict().items():
            self.register_buffer(_flat(name), tensor.detach().clone())

    @torch.no_grad()
    def take(self, tokenizer: Tokenizer) -> None:
        """Copy the weights of a tokenizer that has just given codes."""
        own = dict(self.named_buffers())
        for name, tensor in tokenizer.state_dict().items():
            own[_flat(name)].copy_(tensor)

    @torch.no_grad()
    def give(self, tokenizer: Tokenizer) -> None:
        """Make a tokenizer the one that gave the codes."""
        own = dict(self.named_buffers())
        for name, tensor in tokenizer.state_dict().items():
            tensor.copy_(own[_flat(name)])


def _flat(name: str) -> str:
    return name.replace(".", "/")  # a buffer's name has no dots
