"""Recommends after histories of items, which are named by their tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from recbole.data.dataset import Dataset

from recbole_etegrec.decoding import Ranking
from recbole_etegrec.errors import UserError
from recbole_etegrec.inference.catalogue import Catalogue
from recbole_etegrec.inference.histories import Histories, given_histories
from recbole_etegrec.model.protocol import RankingModel
from recbole_etegrec.recommender import autocast


class Recommendation(NamedTuple):
    """One item of a ranking.

    Attributes:
        log_probability: its score, in nats: ``log p(item | history)`` where codes alone or the item
            head alone rank, and a weighted sum of both where they rank together.
    """

    item: str
    title: str | None
    log_probability: float


def recommend(
    model: RankingModel,
    items: Catalogue | Dataset,
    histories: Sequence[Sequence[str]],
    k: int = 10,
    *,
    exclude_history: bool | None = None,
    batch_size: int = 256,
) -> list[list[Recommendation]]:
    """The ``k`` best items after each history, best first, on the device of the model.

    Args:
        model: trained, as `load_run` or `load_exported` returns it.
        items: the dataset or the catalogue that came with it, or one of the same items.
        histories: item tokens, the most recent last; of a long history the model sees the last
            ``MAX_ITEM_LIST_LENGTH``.
        exclude_history: whether items of a history are kept out of its ranking; where that
            leaves fewer than ``k`` items, fewer come back. None: as the run of the model did.
        batch_size: histories that are ranked at once.

    Raises:
        UserError: a history is empty or has items that are not known, or `k` is below 1.
    """
    catalogue = catalogue_of(model, items)
    if k < 1:
        raise UserError(f"k ({k}): must be at least 1")
    if not len(histories):
        return []
    known = item_ids(catalogue, histories)
    exclude = model.exclude_history if exclude_history is None else exclude_history
    given = given_histories(model, known, exclude)
    ranking = rank(model, given, np.arange(len(known)), k, batch_size)
    return named(catalogue, ranking)


def catalogue_of(model: RankingModel, items: Catalogue | Dataset) -> Catalogue:
    """Return the catalogue, checked against the model.

    Raises:
        UserError: it has another number of items than the model.
    """
    catalogue = items if isinstance(items, Catalogue) else Catalogue.from_dataset(items)
    if len(catalogue) != model.n_items:
        raise UserError(
            f"items: {len(catalogue) - 1} of them, but the model has {model.n_items - 1}: give "
            "those that it was trained on"
        )
    return catalogue


def item_ids(catalogue: Catalogue, histories: Sequence[Sequence[str]]) -> list[list[int]]:
    """Item ids of histories of tokens.

    Raises:
        UserError: one is empty, or has items that are not known.
    """
    for number, history in enumerate(histories):
        if isinstance(history, str):
            raise UserError(f"histories: '{history}' is not a list of item tokens")
        if not len(history):
            raise UserError(f"histories: number {number} is empty, a model ranks after one item")
    flat = iter(catalogue.ids(token for history in histories for token in history))
    return [[next(flat) for _ in history] for history in histories]


@torch.no_grad()
def rank(
    model: RankingModel, histories: Histories, rows: np.ndarray, k: int, batch_size: int
) -> Ranking:
    """The ``k`` best items of some rows, in their order, on the CPU.

    Batches are of histories of about the same length, so that they hold little padding; rows
    that come in order of length are ranked in batches as they come.
    """
    model.eval()
    device = model.device
    order = np.argsort(histories.lengths[rows], kind="stable")
    rankings = []
    for start in range(0, len(rows), batch_size):
        interaction, excluded = histories.batch(rows[order[start : start + batch_size]])
        with autocast(model.precision, device.type):
            ranking = model.ranker.best(interaction.to(device), k, excluded)
        rankings.append([values.cpu() for values in ranking])
    back = torch.from_numpy(np.argsort(order))
    return Ranking(*(torch.cat(values)[back] for values in zip(*rankings, strict=True)))


def named(catalogue: Catalogue, ranking: Ranking) -> list[list[Recommendation]]:
    """Give rankings of item ids tokens and titles; item 0 stands for no item."""
    return [
        [
            Recommendation(catalogue.tokens[item], catalogue.titles[item], score)
            for item, score in zip(items, scores, strict=True)
            if item
        ]
        for items, scores in zip(ranking.items.tolist(), ranking.scores.tolist(), strict=True)
    ]
