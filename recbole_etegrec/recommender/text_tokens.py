"""The token table and head of a pretrained decoder, for texts among codes."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.configuration_utils import PreTrainedConfig

from recbole_etegrec.errors import UserError

_AT_ONCE = 1024  # tokens whose logits, a whole vocabulary each, are held at once
_FURTHER = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


class TextTokens(nn.Module):
    """Tokens of text into the decoder and out of it, as the decoder was pretrained.

    Args:
        table: of tokens, ``[V, H]``.
        head: of logits; None: it is the table, or no text is asked for.
    """

    def __init__(self, table: nn.Module, head: nn.Module | None = None):
        super().__init__()
        self.table, self.head = table, head

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens ``[...]`` → ``[..., H]``, in fp32."""
        return self.table(tokens).float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits over the vocabulary in fp32: states ``[m, H]`` → ``[m, V]``."""
        weight = (self.head or self.table).weight
        return F.linear(hidden.to(weight.dtype), weight, getattr(self.head, "bias", None)).float()

    def nothing(self) -> torch.Tensor | None:
        """No number ``[0]``, for distributed wrappers, which want a gradient of all that learns."""
        learns = [p.flatten()[:0].float() for p in self.parameters() if p.requires_grad]
        return torch.cat(learns) if learns else None

    def nll(self, hidden: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """``-log p`` of the tokens after states, in nats ``[m]``.

        Logits are made anew going back, for those of a few tokens are as large as a decoder's
        activations.

        Args:
            hidden: the states before them ``[m, H]``.
            tokens: ``[m]``.
        """

        def some(states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(self.logits(states), targets, reduction="none")

        parts = zip(hidden.split(_AT_ONCE), tokens.split(_AT_ONCE), strict=True)
        return torch.cat([checkpoint(some, *part, use_reentrant=False) for part in parts])


def empty_text_tokens(vocabulary: int, hidden_size: int, head: str) -> TextTokens:
    """A table and head of shapes alone, each number random.

    Args:
        vocabulary: rows of the table.
        head: ``none``, ``tied`` to the table, or its ``own``.
    """
    own = nn.Linear(hidden_size, vocabulary, bias=False) if head == "own" else None
    return TextTokens(nn.Embedding(vocabulary, hidden_size), own)


def check_plain_head(base_model: str, config: PreTrainedConfig) -> None:
    """Refuse a decoder whose logits are more than a product of states and its head.

    Raises:
        UserError: see above.
    """
    for key in _FURTHER:
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise UserError(
                f"tasks: base_model ({base_model}) makes its logits in a way of its own ({key}), "
                "which tasks that ask for texts do not know: leave those out, or take another"
            )
