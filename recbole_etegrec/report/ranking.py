"""What a run recommends to the users it was tested on, and for whom that is right."""

from typing import Any, NamedTuple

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader

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
        popularity: of the test items: how often they occur in training ``[U]``.
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
    popularity: np.ndarray
    names: list[str]
    tested: int
    seed: int
    changed: str


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
    trained = train_data._dataset.inter_feat[dataset.iid_field].numpy()
    catalogue = Catalogue.from_dataset(dataset)
    return Rankings(
        k=k,
        place=np.where(hits.any(axis=1), hits.argmax(axis=1), k),
        items=items,
        target=target,
        history=np.where(last >= 0, shown, 0),
        length=length,
        popularity=np.bincount(trained, minlength=len(catalogue))[target],
        names=[catalogue.name(item) for item in range(len(catalogue))],
        tested=len(test_data._dataset.inter_feat),
        seed=config["seed"],
        changed=dataset.changed,
    )


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
