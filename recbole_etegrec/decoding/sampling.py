"""Beams that are drawn: items of a trie without replacement, by their probabilities.

Stochastic beam search (Kool et al., 2019): each node gets its log-probability and Gumbel noise,
children such that the largest of them has its parent's value. The ``K`` largest leaves then are a
sample without replacement.
"""

import torch

from recbole_etegrec.tokenizer.trie import Children

_BITS = 0xFFFFFFFF


class TrieSampler:
    """What a beam search keeps its beams by, in place of their log-probabilities.

    Args:
        temperature: probabilities among the children of a node are those of the model to the power
            of one over it, normalised over the children there are.
        seeds: of the noise of each row ``[B]``; the noise follows from them and the trie's nodes.
    """

    def __init__(self, temperature: float, seeds: torch.Tensor):
        self.temperature, self.seeds = temperature, seeds
        self.logits = self.keys = torch.zeros(len(seeds), 1, device=seeds.device)  # of the beams

    def scores(
        self, level: int, children: Children, exists: torch.Tensor, log_probs: torch.Tensor
    ) -> torch.Tensor:
        """Values of all children of the present beams ``[B, K, W]``, -inf where there is none.

        Args:
            exists: which of the children there are ``[B, K, W]``.
            log_probs: of their last codes ``[B, K, W]``.
        """
        logits = (log_probs / self.temperature).masked_fill(~exists, -torch.inf)
        logits = logits - logits.logsumexp(dim=2, keepdim=True)
        logits = (self.logits.unsqueeze(2) + logits).masked_fill(~exists, -torch.inf)
        noise = _gumbel(self.seeds.view(-1, 1, 1) + level, children.nodes)
        own = logits + noise.to(logits)
        most, parent = own.amax(dim=2, keepdim=True), self.keys.unsqueeze(2)
        # - log(exp(- parent) - exp(- most) + exp(- own)), as Kool et al. compute it (appendix B.3).
        inner = parent - own + torch.log1p(-(own - most).exp())
        value = parent - inner.clamp_min(0) - torch.log1p((-inner.abs()).exp())
        value = torch.where(own == most, parent, value)
        self._children = logits, value.masked_fill(~exists, -torch.inf)
        return self._children[1]

    def keep(self, chosen: torch.Tensor) -> None:
        """Take those of the children, by their numbers among all of a row, for the beams."""
        logits, keys = self._children
        self.logits = logits.flatten(1).gather(1, chosen)
        self.keys = keys.flatten(1).gather(1, chosen)


def row_seeds(histories: torch.Tensor, seed: int) -> torch.Tensor:
    """A number for each of some histories ``[B, T]``, padded with 0, that follows from it alone."""
    places = torch.arange(1, histories.shape[1] + 1, device=histories.device)
    return _mixed((histories * _mixed(places)).sum(dim=1) + (seed & _BITS))


def _gumbel(seeds: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
    drawn = _mixed(_mixed(seeds) + nodes.long()) >> 9  # as many bits as fp32 holds beside a half
    uniform = (drawn.float() + 0.5) / 2**23
    return -(-uniform.log()).log()


def _mixed(numbers: torch.Tensor) -> torch.Tensor:
    """Numbers below 2^32 that look as if they were drawn, the same on every device.

    A hash of 32 bits (of Wellons' search for low bias) in integers of 64, which hold its products.
    """
    numbers = numbers & _BITS
    numbers = (numbers ^ (numbers >> 16)) * 0x21F0AAAD & _BITS
    numbers = (numbers ^ (numbers >> 15)) * 0x735A2D97 & _BITS
    return numbers ^ (numbers >> 15)
