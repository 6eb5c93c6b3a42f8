"""Why a model recommends an item: its codes one by one, with what else each step could have been.

The probability of an item is the product over its codes, each given the history and the codes
before it; a partial code stands for all items that begin with it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction

from recbole_etegrec.inference.catalogue import Catalogue, cut
from recbole_etegrec.inference.histories import given_histories
from recbole_etegrec.inference.recommend import catalogue_of, item_ids
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.model.build import autocast_to

_EXAMPLES = 3


class Choice(NamedTuple):
    """One code that a step may take.

    Attributes:
        code: its number in the codebook of its level.
        log_probability: given the history and the codes before, over all codes of the level, in
            nats.
        items: items that begin with the codes so far and this one.
        examples: names of the few of these that are nearest to their mean item embedding.
    """

    code: int
    log_probability: float
    items: int
    examples: list[str]


class Step(NamedTuple):
    """The code of the item at one level, and the likeliest others that lead to items."""

    chosen: Choice
    alternatives: list[Choice]


class Explanation(NamedTuple):
    """The steps to an item; their log-probabilities sum to its own, which ranks it."""

    item: str
    title: str | None
    log_probability: float
    steps: list[Step]

    def __str__(self) -> str:
        name = f"{self.item} {self.title or ''}".rstrip()
        lines = [f"item {name}", f"log p {self.log_probability:.3f}", ""]
        lines.append(f"{'level':8}{'code':>5}{'p':>9}{'log p':>9}{'items':>8}  such as")
        for level, step in enumerate(self.steps):
            lines.append(_line(str(level), step.chosen))
            lines += [_line("  or", choice) for choice in step.alternatives]
        return "\n".join(lines) + "\n"


def explain(
    model: ETEGRecLlama,
    items: Catalogue | Dataset,
    history: Sequence[str],
    item: str,
    alternatives: int = 3,
) -> Explanation:
    """How likely each code of an item is after a history, and what the others stand for.

    Args:
        model: trained, as `load_run` returns it.
        items: the dataset that `load_run` returns, or a catalogue: of the same items.
        history: item tokens, the most recent last.
        item: token of the item; any, recommended or not.
        alternatives: other codes shown at each step; fewer where the trie has fewer.

    Raises:
        UserError: the history is empty, or items are not known.
    """
    catalogue = catalogue_of(model, items)
    given = given_histories(model, item_ids(catalogue, [history]), exclude=False)
    (number,) = catalogue.ids([item])
    log_probs = _log_probs(model, given.batch(np.arange(1))[0], number)
    steps = [
        _step(model, catalogue, level, log_probs[level], number, alternatives)
        for level in range(len(log_probs))
    ]
    total = sum(step.chosen.log_probability for step in steps)
    return Explanation(catalogue.tokens[number], catalogue.titles[number], total, steps)


def _log_probs(model: ETEGRecLlama, interaction: Interaction, item: int) -> torch.Tensor:
    """Of all codes at each level, given the codes of the item before it: ``[L, C]``, on the CPU."""
    model.eval()
    device = model.item_embedding.device
    interaction.update(Interaction({model.ITEM_ID: torch.tensor([item])}))
    with autocast_to(model.precision, device.type):
        return model.predict_codes(interaction.to(device))[0].cpu()


def _step(
    model: ETEGRecLlama,
    catalogue: Catalogue,
    level: int,
    log_probs: torch.Tensor,
    item: int,
    alternatives: int,
) -> Step:
    trie = model.codes.trie
    children = trie.children(level, trie.nodes[level][trie.leaf_of[item]])
    codes, nodes = (x[children.exists].cpu() for x in (children.codes, children.nodes))
    order = log_probs[codes].argsort(descending=True, stable=True)
    own = codes[order] == model.codes.table[item, level].cpu()
    choices = [
        Choice(
            int(codes[place]),
            float(log_probs[codes[place]]),
            *_below(model, catalogue, level + 1, int(nodes[place])),
        )
        for place in torch.cat([order[own], order[~own][:alternatives]])
    ]
    return Step(choices[0], choices[1:])


def _below(
    model: ETEGRecLlama, catalogue: Catalogue, depth: int, node: int
) -> tuple[int, list[str]]:
    """How many items are under a node of a depth, and names of some."""
    items = model.codes.trie.items[model.codes.trie.nodes[depth] == node]
    embedding = model.item_embedding[items]
    distance = (embedding - embedding.mean(dim=0)).norm(dim=1)
    nearest = items[distance.argsort(stable=True)[:_EXAMPLES]]
    return len(items), [catalogue.name(item) for item in nearest.tolist()]


def _line(head: str, choice: Choice) -> str:
    value = choice.log_probability
    numbers = f"{choice.code:5}{math.exp(value):9.2%}{value:9.3f}{choice.items:8}"
    return f"{head:8}{numbers}  {'; '.join(map(cut, choice.examples))}"
