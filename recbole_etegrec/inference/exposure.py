"""How often items that came after training are shown: the bonus on their scores sets it.

The bonus stands for the probability that the next item is a new one, see `decoding/new_items.py`.
It is the number with which new items get their share of the first places after validation
histories: as large as their share of the catalogue, times `new_item_exposure`.
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
        before: share of validation's items found in them without new items.
        after: with new items.
        users: whose histories were looked at.
    """

    bonus: float
    k: int
    share: float
    before: float
    after: float
    users: int

    def __str__(self) -> str:
        return (
            f"bonus {self.bonus:.2f}: new items take {self.share:.1%} of the first {self.k} places "
            f"after {self.users} validation histories; recall@{self.k} of the items known before "
            f"{self.before:.4f} -> {self.after:.4f}"
        )


class _Scores(NamedTuple):
    """Scores after histories, without a bonus.

    Attributes:
        known: the best of the items known before, descending ``[B, k]``.
        new: the best of the new ones ``[B, k]``, -inf where there are fewer.
        target: of the items to be found ``[B]``.
    """

    known: torch.Tensor
    new: torch.Tensor
    target: torch.Tensor

    @property
    def users(self) -> int:
        """How many histories they are of."""
        return len(self.target)


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
    scores = _score(config, model, ranker, loaders, k)
    wanted = config["new_item_exposure"] * (model.n_items - learned) / (model.n_items - 1)
    # The j-th best new item is among the first k where it passes the known item k - j.
    needed = (scores.known.flip(1) - scores.new)[:, : k // every].flatten().sort().values
    always = int(needed.isneginf().sum())  # where fewer than k known items are ranked
    needed = needed[needed.isfinite()]
    count = max(round(wanted * k * scores.users) - always, 0)
    if count < len(needed):
        bonus = float(needed[: count + 1][-2:].mean())
    else:
        bonus = float(needed[-1]) + 1 if len(needed) else 0.0
    return _found(scores, bonus, k, every)


@torch.no_grad()
def _score(
    config: Config,
    model: ETEGRecLlama,
    ranker: HeadRanker,
    loaders: Sequence[AbstractDataLoader],
    k: int,
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
        best_new = new.topk(min(k, new.shape[1])).values
        missing = best_new.new_full((len(new), k - best_new.shape[1]), -torch.inf)
        target = scores.gather(1, targets[some].unsqueeze(1)).squeeze(1)
        best = known.topk(k).values, torch.cat([best_new, missing], dim=1), target
        parts.append([values.float().cpu() for values in best])
    return _Scores(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _found(scores: _Scores, bonus: float, k: int, every: int) -> Exposure:
    new = (scores.new + bonus > scores.known.flip(1))[:, : k // every].sum(dim=1)
    above, found = (scores.known > scores.target.unsqueeze(1)).sum(dim=1), scores.target.isfinite()
    return Exposure(
        bonus=bonus,
        k=k,
        share=float(new.float().mean()) / k,
        before=float((found & (above < k)).float().mean()),
        after=float((found & (above < k - new)).float().mean()),
        users=scores.users,
    )
