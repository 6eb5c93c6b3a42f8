"""How often items that came after training are shown: the bonus on their scores sets it.

The bonus stands for the probability that the next item is a new one, see `decoding/new_items.py`.
It is the largest with which new items cost the others no more than `new_item_cost` of their recall
after validation histories. What is lost is a hit in the last places of a list. Few targets are
exactly there, so it is estimated from those in the places around the last.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader

from recbole_etegrec.config import Config
from recbole_etegrec.decoding import RANKERS, HeadRanker, ranking_of
from recbole_etegrec.inference.histories import split_histories
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.recommender import autocast

_USERS = 2000  # validation histories that are looked at, at most


class Exposure(NamedTuple):
    """A bonus, and what comes of it.

    Attributes:
        bonus: on the scores of new items.
        k: first places that are looked at.
        share: of them that new items take.
        recall: share of validation's items that are found in them without new items.
        cost: the part of these that new items take the places of, as estimated.
        users: whose histories were looked at.
    """

    bonus: float
    k: int
    share: float
    recall: float
    cost: float
    users: int

    def __str__(self) -> str:
        return (
            f"bonus {self.bonus:.2f}: new items take {self.share:.1%} of the first {self.k} places "
            f"after {self.users} validation histories, which costs the items known before "
            f"{self.cost:.1%} of their recall@{self.k} ({self.recall:.4f})"
        )


class _Scores(NamedTuple):
    """Scores after histories, without a bonus.

    Attributes:
        known: the best of the items known before, descending ``[B, k]``.
        new: the best of the new ones ``[B, j]``, -inf where there are fewer.
        place: of the items to be found among those known before, from 0; -1: none ``[B]``.
    """

    known: torch.Tensor
    new: torch.Tensor
    place: torch.Tensor


def find_exposure(
    config: Config, model: ETEGRecLlama, loaders: Sequence[AbstractDataLoader]
) -> Exposure | None:
    """The bonus for the new items of a model; None where its ranker has no use for one.

    Args:
        loaders: (train, valid, test).
    """
    if not issubclass(RANKERS[ranking_of(config)], HeadRanker):
        return None
    learned = model.trained_items
    if model.n_items == learned:
        return None
    ranker = copy.copy(model.ranker)
    ranker.take({"new_item_bonus": 0.0})
    every, ranker.new_item_every = ranker.new_item_every, 1
    k = max(10 if 10 in config["topk"] else max(config["topk"]), every)
    k = min(k, learned - 1)
    ranker.candidates = max(ranker.candidates, 2 * k)
    return _largest(_score(config, model, ranker, loaders, k, k // every), config["new_item_cost"])


def _largest(scores: _Scores, most: float) -> Exposure:
    """The largest bonus that costs the known items no more than a part of their recall."""
    k, around = scores.known.shape[1], scores.known.shape[1] // 3
    hits = int(((scores.place >= 0) & (scores.place < k)).sum())
    near = (scores.place - (k - 1)).abs() <= around
    lost = near.float() / (2 * around + 1) / max(hits, 1)  # with each place that new items take
    # The j-th best new item is among the first k where it passes the known item k - j.
    needed = scores.known.flip(1)[:, : scores.new.shape[1]] - scores.new
    steps, order = needed.flatten().sort(stable=True)
    costs = lost.repeat_interleave(needed.shape[1])[order].cumsum(0)
    possible = steps.isfinite()  # not where fewer than k known items are ranked, or no new one
    steps, costs = steps[possible], costs[possible]
    count = int((costs <= most).sum())
    if count < len(steps):
        bonus = float(steps[: count + 1][-2:].mean())
    else:
        bonus = float(steps[-1]) + 1 if len(steps) else 0.0
    taken = (needed < bonus).sum(dim=1)
    return Exposure(
        bonus=bonus,
        k=k,
        share=float(taken.float().mean()) / k,
        recall=hits / len(taken),
        cost=float((taken * lost).sum()),
        users=len(taken),
    )


@torch.no_grad()
def _score(
    config: Config,
    model: ETEGRecLlama,
    ranker: HeadRanker,
    loaders: Sequence[AbstractDataLoader],
    k: int,
    new_items: int,
) -> _Scores:
    histories = split_histories(loaders, "valid", model.exclude_history).histories
    part = loaders[1]._dataset
    targets = part.inter_feat[part.iid_field].to(model.codes.table.device)
    rows = np.arange(len(targets))
    if len(rows) > _USERS:
        rows = np.sort(np.random.default_rng(config["seed"]).choice(rows, _USERS, replace=False))
    parts = []
    for some in np.array_split(rows, -(-len(rows) // config["eval_batch_size"])):
        interaction, excluded = histories.batch(some)
        with autocast(model.precision, targets.device.type):
            scores = ranker.score_all(interaction.to(targets.device), excluded)
        known, new = scores[:, : model.trained_items], scores[:, model.trained_items :]
        target = known.gather(1, targets[some].unsqueeze(1))
        place = (known > target).sum(dim=1).masked_fill(target.squeeze(1).isneginf(), -1)
        best_new = new.topk(min(new_items, new.shape[1])).values
        best = known.topk(k).values, best_new, place
        parts.append([values.float().cpu() for values in best])
    return _Scores(*(torch.cat(values) for values in zip(*parts, strict=True)))
