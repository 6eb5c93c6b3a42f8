"""Evaluation by RecBole's collector and evaluator, full ranking or sampled."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.evaluator import Evaluator
from recbole.evaluator.collector import DataStruct
from tqdm import tqdm

from recbole_etegrec.config import Config
from recbole_etegrec.data.seen_items import FullSortLoader, HistoryIndex
from recbole_etegrec.decoding import Ask, EnsembleRanker, Ranker, Scored
from recbole_etegrec.evaluation.collector import RankingCollector
from recbole_etegrec.model.protocol import RankingModel
from recbole_etegrec.recommender import autocast

logger = logging.getLogger(__name__)

VALIDATED = 100_000  # users of the validation of a whole run, at most


def sample_users(
    config: Config, loader: AbstractDataLoader | None, count: int
) -> AbstractDataLoader | None:
    """A loader over a seeded sample of an evaluation loader's rows; all with a count of 0."""
    if loader is None or not 0 < count < len(loader._dataset.inter_feat):
        return loader
    dataset = loader._dataset
    rows = len(dataset.inter_feat)
    chosen = np.random.default_rng(config["seed"]).choice(rows, count, replace=False)
    part = dataset.copy(dataset.inter_feat[torch.from_numpy(np.sort(chosen))])
    if isinstance(loader, FullSortLoader):
        return FullSortLoader(config, part, loader._sampler, loader.seen)
    return type(loader)(config, part, loader._sampler, shuffle=False)


def told_sample(
    config: Config, loader: AbstractDataLoader | None, count: int, what: str
) -> AbstractDataLoader | None:
    """The same as `sample_users`; where it leaves rows out, a line in the log says so.

    Args:
        what: is evaluated, as the line begins.
    """
    sampled = sample_users(config, loader, count)
    if sampled is not loader:
        rows = len(loader._dataset.inter_feat)
        logger.info("%s: a sample of %d of %d users", what, count, rows)
    return sampled


def evaluate(
    model: RankingModel,
    loader: AbstractDataLoader,
    train_dataset: Dataset,
    config: Config,
    *,
    show_progress: bool = False,
    title: str = "Evaluate",
) -> dict[str, float]:
    """Metrics of a model over the users of a loader: RecBole's result, metric@k to value.

    Takes what `collect_rankings` does.
    """
    collected = collect_rankings(
        model, loader, train_dataset, config, show_progress=show_progress, title=title
    )
    return metrics_of(config, collected)


def evaluate_each(
    model: RankingModel,
    rankers: Sequence[Ranker],
    loader: AbstractDataLoader,
    train_dataset: Dataset,
    config: Config,
    *,
    show_progress: bool = False,
    title: str = "Evaluate",
) -> list[dict[str, float]]:
    """What `evaluate` gives, for several rankers of the model, which rank each batch in turn."""
    each = _collect(model, rankers, loader, train_dataset, config, show_progress, title)
    return [metrics_of(config, collected) for collected in each]


def collect_rankings(
    model: RankingModel,
    loader: AbstractDataLoader,
    train_dataset: Dataset,
    config: Config,
    *,
    show_progress: bool = False,
    title: str = "Evaluate",
) -> DataStruct:
    """What RecBole's evaluator makes its metrics of, in the config's precision.

    With several processes each ranks its share of the batches, and all get all of it. The members
    of an ensemble rank all batches in turn, so that one of them is in memory at a time.

    Args:
        model: its ranker ranks.
        loader: one of RecBole's evaluation loaders.
        train_dataset: for the metrics that need item counts.
    """
    if isinstance(model.ranker, EnsembleRanker) and isinstance(loader, FullSortEvalDataLoader):
        scored, weights = score_in_turn(model.ranker, loader, config), model.ranker.weights
        best = (found.best(weights, max(config["topk"])).items for found in scored)
        return collect_items(best, loader, train_dataset, config)
    return _collect(model, [model.ranker], loader, train_dataset, config, show_progress, title)[0]


def score_in_turn(
    ranker: EnsembleRanker, loader: FullSortEvalDataLoader, config: Config
) -> Iterator[Scored]:
    """What the members of an ensemble give to the candidates of each batch of a loader."""
    asks = [Ask(interaction, excluded) for interaction, excluded, *_ in loader]
    return ranker.in_turn(asks, max(config["topk"]))


def collect_items(
    best: Iterable[torch.Tensor],
    loader: FullSortEvalDataLoader,
    train_dataset: Dataset,
    config: Config,
) -> DataStruct:
    """What RecBole's evaluator makes its metrics of, from the best items of each batch."""
    collector = RankingCollector(config)
    collector.data_collect(_Training(train_dataset))
    for items, (interaction, _, positive_u, positive_i) in zip(best, loader, strict=True):
        collector.collect_best_items(items, interaction, positive_u, positive_i)
    return collector.get_data_struct()


@torch.no_grad()
def _collect(
    model: RankingModel,
    rankers: Sequence[Ranker],
    loader: AbstractDataLoader,
    train_dataset: Dataset,
    config: Config,
    show_progress: bool,
    title: str,
) -> list[DataStruct]:
    state = PartialState()
    collectors = [RankingCollector(config) for _ in rankers]
    for collector in collectors:
        collector.data_collect(_Training(train_dataset))
    ways = [
        _way_to_rank(model, ranker, collector, loader, config)
        for ranker, collector in zip(rankers, collectors, strict=True)
    ]
    model.eval()
    np.random.seed(config["seed"])  # sampled evaluation: the same items each time, everywhere
    collected = []
    with autocast(config["precision"], config["device"].type):
        for number, batch in enumerate(tqdm(loader, title, disable=not show_progress, ncols=100)):
            own = number % state.num_processes == state.process_index
            # The last round may have fewer batches than processes. All of them rank one then,
            # for a sharded model needs every process in every forward pass.
            left_over = number == len(loader) - 1 and state.process_index > (
                number % state.num_processes
            )
            if not own and not left_over:
                continue
            interaction, index, positive_u, positive_i = batch
            interaction = interaction.to(config["device"])
            ranked = [rank(interaction, index) for rank, _ in ways]
            if left_over:
                break
            for (_, collect), found in zip(ways, ranked, strict=True):
                collect(found, interaction, positive_u, positive_i)
            collected.append((number, [collector.take_batch() for collector in collectors]))
    # Each batch was ranked by one process; in their order, all have what a single one has.
    for _, batches in sorted(gather_object(collected), key=lambda pair: pair[0]):
        for collector, batch in zip(collectors, batches, strict=True):
            collector.put_batch(batch)
    return [collector.get_data_struct() for collector in collectors]


def metrics_of(config: Config, collected: DataStruct) -> dict[str, float]:
    """RecBole's metrics of what was collected."""
    result = Evaluator(config).evaluate(collected)
    return {name: float(value) for name, value in result.items()}


def _way_to_rank(
    model: RankingModel,
    ranker: Ranker,
    collector: RankingCollector,
    loader: AbstractDataLoader,
    config: Config,
) -> tuple[Callable, Callable]:
    """What ranks a batch, and what takes the ranking."""
    if not isinstance(loader, FullSortEvalDataLoader):
        return partial(_score_sampled, model, ranker), collector.eval_batch_collect
    if collector.needs_scores:
        return ranker.score_all, collector.eval_batch_collect
    # Scores of all items are then never made.
    return partial(_best_items, ranker, max(config["topk"])), collector.collect_best_items


class _Training:
    """What RecBole's collector asks of a training loader."""

    def __init__(self, dataset):
        self.dataset = dataset


def _best_items(
    ranker: Ranker, k: int, interaction: Interaction, excluded: HistoryIndex | None
) -> torch.Tensor:
    return ranker.best(interaction, k, excluded).items


def _score_sampled(
    model: RankingModel, ranker: Ranker, interaction: Interaction, rows: torch.Tensor
) -> torch.Tensor:
    """Scores of each user's sampled items; the user's history is encoded once.

    Args:
        rows: which user each line of the interaction belongs to, ascending.
    """
    items = interaction[model.fields.item]
    rows = rows.to(items.device)
    users, counts = rows.unique_consecutive(return_counts=True)
    first = counts.cumsum(0) - counts
    column = torch.arange(len(rows), device=rows.device) - first[rows]
    candidates = items.new_ones(len(users), int(counts.max()))
    candidates[rows, column] = items
    scored = ranker.score(interaction[first], candidates)
    scores = scored.new_full((len(users), model.n_items), -torch.inf)
    scores[rows, items] = scored[rows, column]
    return scores
