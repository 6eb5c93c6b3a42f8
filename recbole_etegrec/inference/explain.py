"""Explains why a model recommends an item: its codes one by one, with the alternatives of each.

The probability of an item by its codes is the product over them, each given the history and the
codes before it; a partial code stands for all items that begin with it. Where an item head ranks
too, its part of the score is shown beside that.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction

from recbole_etegrec.decoding import Part, code_log_probs, encode_batch
from recbole_etegrec.errors import UserError
from recbole_etegrec.inference.catalogue import Catalogue, cut
from recbole_etegrec.inference.histories import given_histories
from recbole_etegrec.inference.recommend import catalogue_of, item_ids
from recbole_etegrec.model.ensemble import EnsembleModel
from recbole_etegrec.model.protocol import CodeModel, RankingModel
from recbole_etegrec.recommender import autocast

_EXAMPLES = 3


class Choice(NamedTuple):
    """One code that a step may take.

    Attributes:
        code: its number in the codebook of its level.
        log_probability: given the history and the codes before, over all codes of the level, in
            nats.
        items: items that begin with the codes so far and this one.
        examples: names of a few of these items, those nearest to their mean item embedding; an
            exported model has no embeddings and gives the first few.
    """

    code: int
    log_probability: float
    items: int
    examples: list[str]


class Step(NamedTuple):
    """The code of the item at one level, and the likeliest other codes that lead to items."""

    chosen: Choice
    alternatives: list[Choice]


class Explanation(NamedTuple):
    """The steps to an item, and what it is ranked by.

    Attributes:
        log_probability: of its codes, the sum over the steps; of an ensemble, which has no codes
            of its own, the score.
        score: what it is ranked by, the sum of the parts.
        parts: weight and log-probability of each part of the score, by name; of an ensemble, of
            each member.
        members: of an ensemble, what each member that has codes says of them.
    """

    item: str
    title: str | None
    log_probability: float
    steps: list[Step]
    score: float
    parts: dict[str, tuple[float, float]]
    members: dict[str, "Explanation"] = {}

    def __str__(self) -> str:
        name = f"{self.item} {self.title or ''}".rstrip()
        lines = [f"item {name}"]
        if self.steps:
            lines.append(f"log p {self.log_probability:.3f}")
        if list(self.parts) != ["codes"]:
            parts = [
                f"{weight:g} * {value:.3f} ({of})" for of, (weight, value) in self.parts.items()
            ]
            lines.append(f"score {self.score:.3f} = {' + '.join(parts)}")
        for member, explanation in self.members.items():
            lines += ["", f"{member}: {explanation}".rstrip()]
        if not self.steps:
            return "\n".join(lines) + "\n"
        lines.append("")
        lines.append(f"{'level':8}{'code':>5}{'p':>9}{'log p':>9}{'items':>8}  such as")
        for level, step in enumerate(self.steps):
            lines.append(_line(str(level), step.chosen))
            lines += [_line("  or", choice) for choice in step.alternatives]
        return "\n".join(lines) + "\n"


def explain(
    model: RankingModel,
    items: Catalogue | Dataset,
    history: Sequence[str],
    item: str,
    alternatives: int = 3,
) -> Explanation:
    """Say how likely each code of an item is after a history, and what other codes stand for.

    Args:
        model: trained, as `load_run` or `load_exported` returns it.
        items: the dataset that `load_run` returns, or a catalogue: of the same items.
        history: item tokens, the most recent last.
        item: token of any item, recommended or not.
        alternatives: other codes shown at each step; fewer where the trie has fewer.

    Raises:
        UserError: the history is empty, items are not known, or one is gone from the data.
    """
    return explain_each(model, items, history, [item], alternatives)[0]


def explain_each(
    model: RankingModel,
    items: Catalogue | Dataset,
    history: Sequence[str],
    wanted: Sequence[str],
    alternatives: int = 3,
) -> list[Explanation]:
    """Explain several items after one history, with one pass through the model."""
    catalogue = catalogue_of(model, items)
    given = given_histories(model, item_ids(catalogue, [history]), exclude=False)
    numbers = catalogue.ids(wanted)
    for number in numbers:
        if number in model.left_out:
            raise UserError(
                f"item {catalogue.tokens[number]}: gone from the data since the run was trained, "
                "and not recommended any more"
            )
    interaction, _ = given.batch(np.zeros(len(numbers), dtype=np.int64))
    if isinstance(model, EnsembleModel):
        return _joined(model, catalogue, interaction, numbers, (history, wanted, alternatives))
    log_probs, parts = _scores(model, interaction, numbers)
    return [
        _explanation(
            model,
            catalogue,
            number,
            log_probs[row],
            {name: (part.weight, float(part.log_probs[row])) for name, part in parts.items()},
            alternatives,
        )
        for row, number in enumerate(numbers)
    ]


def _joined(
    model: EnsembleModel,
    catalogue: Catalogue,
    interaction: Interaction,
    numbers: list[int],
    asked: tuple[Sequence[str], Sequence[str], int],
) -> list[Explanation]:
    """Explain items of an ensemble by what each member says of them.

    Args:
        asked: history, items and alternatives, as `explain_each` has them.
    """
    items = torch.tensor(numbers, device=model.device).unsqueeze(1)
    parts = model.ranker.parts(interaction.to(model.device), items)
    history, wanted, alternatives = asked
    members = {
        member.name: explain_each(member.model, catalogue, history, wanted, alternatives)
        for member in model.members
        if hasattr(member.model, "codes")  # those of RecBole have none
    }
    found = []
    for row, number in enumerate(numbers):
        own = {name: (part.weight, float(part.log_probs[row])) for name, part in parts.items()}
        score = sum(weight * value for weight, value in own.values())
        each = {name: explanations[row] for name, explanations in members.items()}
        item, title = catalogue.tokens[number], catalogue.titles[number]
        found.append(Explanation(item, title, score, [], score, own, each))
    return found


def _explanation(
    model: CodeModel,
    catalogue: Catalogue,
    item: int,
    log_probs: torch.Tensor,
    parts: dict[str, tuple[float, float]],
    alternatives: int,
) -> Explanation:
    steps = [
        _step(model, catalogue, level, log_probs[level], item, alternatives)
        for level in range(len(log_probs))
    ]
    total = sum(step.chosen.log_probability for step in steps)
    score = sum(weight * value for weight, value in parts.values())
    name, title = catalogue.tokens[item], catalogue.titles[item]
    return Explanation(name, title, total, steps, score, parts)


@torch.no_grad()
def _scores(
    model: CodeModel, interaction: Interaction, items: list[int]
) -> tuple[torch.Tensor, dict[str, Part]]:
    """How likely codes and items are, on the CPU, for the item of each row.

    Returns:
        Log-probabilities of all codes at each level, given the item's codes before it
        ``[B, L, C]``, and the parts of the item's score.
    """
    model.eval()
    device = model.codes.table.device
    wanted = torch.tensor(items, device=device).unsqueeze(1)
    with autocast(model.precision, device.type):
        history = encode_batch(model.recommender, model.codes, model.fields, interaction.to(device))
        log_probs = code_log_probs(model.recommender, history, model.codes(wanted))
        parts = model.ranker.parts(history, wanted)
    return log_probs.squeeze(1).cpu(), parts


def _step(
    model: CodeModel,
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


def _below(model: CodeModel, catalogue: Catalogue, depth: int, node: int) -> tuple[int, list[str]]:
    """Count the items under a node of the trie, and name some of them."""
    items = model.codes.trie.items[model.codes.trie.nodes[depth] == node]
    order = items.argsort()
    if model.item_embedding is not None:
        embedding = model.item_embedding[items]
        distance = (embedding - embedding.mean(dim=0)).norm(dim=1)
        order = distance.argsort(stable=True)
    examples = items[order[:_EXAMPLES]].tolist()
    return len(items), [catalogue.name(item) for item in examples]


def _line(head: str, choice: Choice) -> str:
    value = choice.log_probability
    numbers = f"{choice.code:5}{math.exp(value):9.2%}{value:9.3f}{choice.items:8}"
    return f"{head:8}{numbers}  {'; '.join(map(cut, choice.examples))}"
