"""What a run recommends to the users it was tested on, and for whom that is right."""

from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction

from recbole_etegrec.config import Config
from recbole_etegrec.evaluation.evaluate import sample_users
from recbole_etegrec.inference.catalogue import Catalogue
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.recommender import autocast
from recbole_etegrec.report.charts import Bar
from recbole_etegrec.runs.load import load_run
from recbole_etegrec.storage.run_directory import RunDirectory

_USERS = 5000  # that are ranked for at most, so that a report takes minutes
_BINS = 5
_OFTEN = (0, 1, 5, 10, 20, 50)  # occurrences in training from which the groups begin
_AGES = ("first quarter", "second quarter", "third quarter", "last quarter")
_EXAMPLES, _HITS = 5, 2  # users shown, and how many of them are hits if there are so many
_HISTORY = 8  # items of theirs that are shown


class Rankings(NamedTuple):
    """The items ranked for test users, with what they are judged by.

    Attributes:
        k: length of a ranking.
        place: of the test item in the ranking, from 0; ``k`` where it is not in it ``[U]``.
        items: the rankings ``[U, k]``.
        target: the test items ``[U]``.
        history: each user's last items, oldest first, the first padded with 0 ``[U, 8]``.
        length: of the whole histories ``[U]``.
        counts: how often each item occurs in training ``[N]``.
        first: time of its first interaction there, NaN where it has none or no time ``[N]``.
        added: which items came after training ``[N]``.
        names: a text for each item id.
        tested: test users there are; more than U if these are a sample.
        seed: of the run.
        changed: how the data differ from those that the run was trained on; empty if they do not.
    """

    k: int
    place: np.ndarray
    items: np.ndarray
    target: np.ndarray
    history: np.ndarray
    length: np.ndarray
    counts: np.ndarray
    first: np.ndarray
    added: np.ndarray
    names: list[str]
    tested: int
    seed: int
    changed: str

    @property
    def popularity(self) -> np.ndarray:
        """Of the test items: how often they occur in training ``[U]``."""
        return self.counts[self.target]


class Group(NamedTuple):
    """Items of one kind, and what becomes of them.

    Attributes:
        items: of the catalogue.
        shown: share of the places of all rankings.
        tested: test items among them.
        recall: share of these that are found; NaN where there are none.
    """

    name: str
    items: int
    shown: float
    tested: int
    recall: float


class Example(NamedTuple):
    """One user, in texts: the last of the history, what was recommended, and the test item."""

    history: list[str]
    recommended: list[str]
    target: str
    hit: int | None


def rank(directory: RunDirectory, config_dict: dict[str, Any] | None = None) -> Rankings | str:
    """Rankings of a sample of the test users, as the test ranks, by the best model of a run.

    Args:
        directory: of a run of this plugin's models.

    Returns:
        In place of them, why this run has none.

    Raises:
        UserError: the dataset is gone, or `config_dict` does not fit.
    """
    if not directory.best.is_dir():
        return "the run has no best/, its model was not kept"
    config, model, dataset, train_data, _, test_data = load_run(str(directory.path), config_dict)
    if not isinstance(test_data, FullSortEvalDataLoader):
        return "the test ranks a sample of the items, not all"
    k = 10 if 10 in config["topk"] else max(config["topk"])
    loader = sample_users(config, test_data, _USERS)
    rows = loader._dataset.inter_feat
    items, target = _recommend(config, model, loader, k), rows[dataset.iid_field].numpy()
    hits = items == target[:, None]  # [U, k]
    history, length = rows[model.fields.history].numpy(), rows[model.fields.length].numpy()
    last = length[:, None] - np.arange(_HISTORY, 0, -1)  # [U, 8]
    shown = np.take_along_axis(history, np.maximum(last, 0), axis=1)
    trained = train_data._dataset.inter_feat
    catalogue = Catalogue.from_dataset(dataset)
    return Rankings(
        k=k,
        place=np.where(hits.any(axis=1), hits.argmax(axis=1), k),
        items=items,
        target=target,
        history=np.where(last >= 0, shown, 0),
        length=length,
        counts=np.bincount(trained[dataset.iid_field].numpy(), minlength=len(catalogue)),
        first=_first_times(dataset, trained, len(catalogue)),
        added=_added(model, len(catalogue)),
        names=[catalogue.name(item) for item in range(len(catalogue))],
        tested=len(test_data._dataset.inter_feat),
        seed=config["seed"],
        changed=dataset.changed,
    )


def _first_times(dataset: Dataset, trained: Interaction, items: int) -> np.ndarray:
    first = np.full(items, np.inf)
    if dataset.time_field in trained:
        times = trained[dataset.time_field].numpy()
        np.minimum.at(first, trained[dataset.iid_field].numpy(), times)
    return np.where(np.isfinite(first), first, np.nan)


def _added(model: ETEGRecLlama, items: int) -> np.ndarray:
    """Which items a model was not trained with ``[N]``."""
    return np.arange(items) >= model.trained_items


@torch.no_grad()
def _recommend(
    config: Config, model: ETEGRecLlama, loader: FullSortEvalDataLoader, k: int
) -> np.ndarray:
    items = []
    with autocast(config["precision"], config["device"].type):
        for interaction, excluded, *_ in loader:
            ranking = model.ranker.best(interaction.to(config["device"]), k, excluded)
            items.append(ranking.items.cpu())
    return torch.cat(items).numpy()


def measures(place: np.ndarray, k: int) -> list[Bar]:
    """Recall@k and NDCG@k of test items at some places."""
    recall = (place < k).astype(float)
    values = {"Recall": recall, "NDCG": recall / np.log2(place + 2)}
    return [
        Bar(f"{name}@{k}", value.mean(), 1.96 * value.std() / len(value) ** 0.5)
        for name, value in values.items()
    ]


def by_bins(rankings: Rankings, values: np.ndarray) -> list[tuple[str, int, list[Bar]]]:
    """The measures of users in some five bins of about equal size, by a whole number of each.

    Returns:
        The range of each bin, its users, and its measures.
    """
    shares = np.arange(1, _BINS + 1) / _BINS
    edges = np.unique(np.quantile(values, shares, method="inverted_cdf"))
    bins = np.searchsorted(edges, values)
    found = []
    for number in range(len(edges)):
        inside = bins == number
        low, high = values[inside].min(), values[inside].max()
        label = f"{low}" if low == high else f"{low}–{high}"
        found.append((label, int(inside.sum()), measures(rankings.place[inside], rankings.k)))
    return found


def by_frequency(rankings: Rankings) -> list[Group]:
    """Items by how often they occur in training; those added later are a group of their own."""
    groups = [("added later", rankings.added)]
    for low, high in zip(_OFTEN, (*_OFTEN[1:], None), strict=True):
        inside = (rankings.counts >= low) & ~rankings.added
        inside &= rankings.counts < (high or np.inf)
        last = "" if high is None else high - 1
        name = f"{low} or more" if high is None else f"{low}" if low == last else f"{low}–{last}"
        groups.append((name, inside))
    return _groups(rankings, groups)


def by_age(rankings: Rankings) -> list[Group]:
    """Items by when they first occur in training, in quarters; empty where no times are known."""
    known = np.flatnonzero(~np.isnan(rankings.first))
    if not len(known):
        return []
    order = known[np.argsort(rankings.first[known], kind="stable")]
    groups = []
    for name, part in zip(_AGES, np.array_split(order, len(_AGES)), strict=True):
        inside = np.zeros(len(rankings.first), dtype=bool)
        inside[part] = True
        groups.append((name, inside))
    return _groups(rankings, [*groups, ("added later", rankings.added)])


def _groups(rankings: Rankings, groups: list[tuple[str, np.ndarray]]) -> list[Group]:
    """What becomes of groups of items, each given as a mask ``[N]``; empty ones are left out."""
    found, places = rankings.place < rankings.k, rankings.items[rankings.items > 0]
    result = []
    for name, mask in groups:
        inside = mask.copy()
        inside[0] = False
        targets = inside[rankings.target]
        recall = found[targets].mean() if targets.any() else np.nan
        shown = inside[places].mean() if len(places) else 0.0
        if inside.any():
            group = Group(name, int(inside.sum()), float(shown), int(targets.sum()), float(recall))
            result.append(group)
    return result


def examples(rankings: Rankings) -> list[Example]:
    """Some users, hits among them; the same each time."""
    order = np.random.default_rng(rankings.seed).permutation(len(rankings.place))
    hit = rankings.place[order] < rankings.k
    hits = order[hit][:_HITS]
    chosen = [*hits, *order[~np.isin(order, hits)]][:_EXAMPLES]
    names = rankings.names
    return [
        Example(
            history=[names[item] for item in rankings.history[user] if item],
            recommended=[names[item] for item in rankings.items[user] if item],
            target=names[rankings.target[user]],
            hit=int(rankings.place[user]) if rankings.place[user] < rankings.k else None,
        )
        for user in chosen
    ]
