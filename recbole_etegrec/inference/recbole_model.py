"""RecBole's own models, as `recommend` ranks with them: for users, and after histories."""

from collections.abc import Sequence

import numpy as np
import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import ModelType

from recbole_etegrec.config import Config
from recbole_etegrec.data.seen_items import HistoryIndex, SeenItems
from recbole_etegrec.data.sequences import sequence_offsets
from recbole_etegrec.decoding import BatchFields, LogitRanker, Ranker
from recbole_etegrec.errors import UserError
from recbole_etegrec.inference.histories import (
    SPLITS,
    Runs,
    UserHistories,
    given_histories,
    split_histories,
)
from recbole_etegrec.runs.baseline import BaselineRanking
from recbole_etegrec.storage.digests import bytes_digest


class RecBoleModel:
    """A trained model of RecBole; see `RankingModel`. Scores are log-softmax over the catalogue.

    Attributes:
        sequential: whether it ranks after histories, and not for users alone.
    """

    precision = "fp32"

    def __init__(self, model: AbstractRecommender, config: Config):
        self.model, self.name = model, config["model"]
        self.device, self.n_items = config["device"], model.n_items
        self.left_out = torch.empty(0, dtype=torch.long)  # scored -inf by the model itself
        self.sequential = config["MODEL_TYPE"] == ModelType.SEQUENTIAL
        self.max_history = config["MAX_ITEM_LIST_LENGTH"] if self.sequential else 0
        exclude = config["exclude_history"]
        self.exclude_history = not self.sequential if exclude is None else exclude
        self.ranker: Ranker = LogitRanker(self._logits, self.n_items)
        self.fields: BatchFields | None = None
        if self.sequential:
            reading = BaselineRanking(model, config, self.name)
            self.fields, self.ranker = reading.fields, reading.ranker

    def eval(self) -> "RecBoleModel":
        """Turn dropout off."""
        self.model.eval()
        return self

    def _logits(self, interaction: Interaction) -> torch.Tensor:
        try:
            scores = self.model.full_sort_predict(interaction)
        except NotImplementedError as error:
            raise UserError(
                f"model {self.name}: it scores one item at a time, and cannot rank a catalogue"
            ) from error
        return scores.view(len(interaction), -1)[:, : self.n_items]

    def given(self, histories: Sequence[Sequence[int]], exclude: bool) -> Runs:
        """The histories of users who have no name.

        Raises:
            UserError: the model ranks for users that it was trained on alone.
        """
        if not self.sequential:
            raise UserError(f"model {self.name}: it ranks for users, not after a history: --users")
        return given_histories(self, histories, exclude)

    def histories(
        self,
        dataset: Dataset,
        loaders: Sequence[AbstractDataLoader],
        split: str | None,
        exclude: bool,
    ) -> UserHistories:
        """All users: after all they have done, or before the held-out items of a split."""
        if split is not None and self.sequential:
            return split_histories(loaders, split, exclude)
        parts = [loader._dataset for loader in loaders]
        parts = parts[: None if split is None else 1 + SPLITS.index(split)]
        seen = SeenItems(parts) if exclude else None
        if self.sequential:
            users, runs = _whole(self, parts)
        else:
            users, runs = np.unique(parts[-1].inter_feat[dataset.uid_field].numpy()), None
            if split is None:
                users = np.arange(1, dataset.user_num)
        tokens = dataset.field2id_token[dataset.uid_field][users]
        return UserHistories(tokens, _UserRows(dataset.uid_field, users, runs, seen))


class _UserRows:
    """Users, with their histories where the model reads them; see `Histories`."""

    def __init__(self, field: str, users: np.ndarray, runs: Runs | None, seen: SeenItems | None):
        self._field, self._users, self._runs, self._seen = field, users, runs, seen
        self.lengths = np.ones(len(users), dtype=np.int64) if runs is None else runs.lengths

    def batch(self, rows: np.ndarray) -> tuple[Interaction, HistoryIndex | None]:
        """See `Histories`."""
        values = {} if self._runs is None else self._runs.batch(rows)[0].interaction
        users = self._users[rows]
        interaction = Interaction({**values, self._field: torch.from_numpy(users)})
        none = torch.empty(0, dtype=torch.long)
        return interaction, None if self._seen is None else self._seen.index(users, (none, none))

    def digest(self, rows: np.ndarray) -> str:
        """See `Histories`."""
        runs, seen = self._runs, self._seen
        told = [self._users[rows]] + ([] if seen is None else seen.told())
        text = "" if runs is None else runs.digest(rows)
        return bytes_digest(b"".join(array.tobytes() for array in told) + text.encode())


def _whole(model: RecBoleModel, parts: Sequence[Dataset]) -> tuple[np.ndarray, Runs]:
    """Each user's longest history of the last part that has the user, with the item after it."""
    first = parts[0]
    feats = [part.inter_feat for part in parts]
    users, targets, lengths = (
        np.concatenate([feat[field].numpy() for feat in feats])
        for field in (first.uid_field, first.iid_field, first.item_list_length_field)
    )
    number = np.repeat(np.arange(len(parts)), [len(feat) for feat in feats])
    place = np.concatenate([np.arange(len(feat)) for feat in feats])
    order = np.lexsort((lengths, number, users))
    rows = order[sequence_offsets(users[order])[1:] - 1]
    lists = [feat[first.item_id_list_field].numpy() for feat in feats]
    histories = [
        np.append(lists[number[row]][place[row], : lengths[row]], targets[row]) for row in rows
    ]
    return users[rows], given_histories(model, histories, exclude=False)
