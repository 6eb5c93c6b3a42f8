"""What users have rated low, for those who learn that it is not what they want."""

import numpy as np

from recbole_etegrec.config import Config
from recbole_etegrec.data.dataset import WholeSequenceDataset
from recbole_etegrec.errors import UserError


class Dislikes:
    """Items that each user of a training part has rated low.

    Args:
        dataset: the training part.
        field: of its ratings.
        most: the highest rating that is low.
        count: items that are told of a user at most ``D``.

    Raises:
        UserError: the part has no ratings, or none so low.
    """

    def __init__(self, dataset: WholeSequenceDataset, field: str, most: float, count: int):
        table, self.count = dataset.inter_feat, count
        if field not in table:
            raise UserError(
                f"preference_disliked ({most}): {dataset.dataset_name} has no field '{field}' with "
                "each interaction: add it to load_col, or name it by RATING_FIELD"
            )
        low = table[field].numpy() <= most
        if not low.any():
            raise UserError(
                f"preference_disliked ({most}): no rating of {dataset.dataset_name} is so low; its "
                f"lowest is {np.nanmin(table[field].numpy()):g}"
            )
        self.all_items, self.low = table[dataset.iid_field].numpy(), low
        self.items = self.all_items[low]
        self.sequences = dataset.sequences.offsets
        self.begins = np.searchsorted(np.flatnonzero(low), self.sequences)

    def __call__(self, targets: np.ndarray, turn: int) -> np.ndarray:
        """Items of the users of some targets, others each turn, 0 where there are no more.

        A target that is low itself stands first.

        Args:
            targets: their places among all items of the training part ``[B]``.

        Returns:
            ``[B, D]``.
        """
        user = np.searchsorted(self.sequences, targets, side="right") - 1
        begin, there = self.begins[user], np.diff(self.begins)[user]
        place = np.arange(self.count)
        first = (targets + turn * self.count)[:, None] + place
        number = begin[:, None] + first % np.maximum(there, 1)[:, None]
        found = self.items[np.minimum(number, len(self.items) - 1)]
        found = np.where(place < there[:, None], found, 0)
        found[:, 0] = np.where(self.low[targets], self.all_items[targets], found[:, 0])
        return found


def find_dislikes(config: Config, dataset: WholeSequenceDataset) -> Dislikes | None:
    """What the users of a training part have rated low, where a config asks for it.

    Raises:
        UserError: see :class:`Dislikes`.
    """
    most = config["preference_disliked"]
    if most is None or "preference" not in config["schedule"]:
        return None
    return Dislikes(dataset, config["RATING_FIELD"], most, config["preference_negatives"])
