"""RecBole's sequential dataset, kept as whole sequences.

RecBole turns a user's ``n`` interactions into ``n - 1`` rows, one a prefix. A causal decoder
computes every prefix of a sequence at once, so the training part stays a flat, sorted list of
interactions here; only the held-out rows carry their history as a list, because RecBole's
evaluation loaders want it so. The held-out interactions are those that RecBole's own
leave-one-out picks, which makes results comparable with its other models.
"""

import numpy as np
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction

from recbole_etegrec.errors import UserError


class WholeSequenceDataset(SequentialDataset):
    """Sequences of item ids, each user's last two interactions held out.

    After :meth:`build`, ``train.inter_feat`` holds the training interactions sorted by user and
    time; ``valid.inter_feat`` and ``test.inter_feat`` hold one row a user: the target in
    ``item_id``, its history right-padded in ``item_id_list`` and its length in ``item_length``.
    """

    def data_augmentation(self) -> None:
        """Sort by user and time; the prefix rows of RecBole are not built."""
        self._check_field("uid_field", "time_field")
        self._aug_presets()
        self.sort(by=[self.uid_field, self.time_field], ascending=True)

    def build(self) -> list["WholeSequenceDataset"]:
        """Split into training, validation and test parts.

        Returns:
            The three datasets, as RecBole's ``build`` does.

        Raises:
            UserError: if a part is empty.
        """
        self._change_feat_format()
        users = self.inter_feat[self.uid_field].numpy()
        offsets = sequence_offsets(users)
        lengths = np.diff(offsets)
        # RecBole counts rows (one less than interactions) and always keeps one for training.
        held_out = np.clip(lengths - 2, 0, 2)
        last = offsets[1:] - 1
        in_train = np.ones(len(users), dtype=bool)
        test_rows = last[held_out >= 1]
        valid_rows = last[held_out >= 2] - 1
        in_train[np.concatenate([valid_rows, test_rows])] = False
        self._drop_unused_col()
        parts = {"valid": self._with_history(valid_rows), "test": self._with_history(test_rows)}
        parts = {"train": self.inter_feat[torch.from_numpy(np.flatnonzero(in_train))], **parts}
        for name, part in parts.items():
            if len(part) == 0:
                raise UserError(
                    f"eval_args.split: the {name} part of {self.dataset_name} is empty "
                    f"({len(lengths)} users, longest sequence {lengths.max(initial=0)}): "
                    "a user needs 4 interactions to have a validation and a test item."
                )
        return [self.copy(part) for part in parts.values()]

    def _with_history(self, rows: np.ndarray) -> Interaction:
        """Rows of the sorted interactions, each with the items before it, shortest first.

        The order by length lets evaluation batches carry almost no padding.
        """
        items = self.inter_feat[self.iid_field].numpy()
        offsets = sequence_offsets(self.inter_feat[self.uid_field].numpy())
        starts = offsets[np.searchsorted(offsets, rows, side="right") - 1]
        lengths = np.minimum(rows - starts, self.max_item_list_len)
        order = np.argsort(lengths, kind="stable")
        rows, lengths = rows[order], lengths[order]
        position = np.arange(self.max_item_list_len)
        source = (rows - lengths)[:, None] + position  # [rows, T]
        inside = position < lengths[:, None]
        history = np.where(inside, items[np.where(inside, source, 0)], 0)
        feat = self.inter_feat[torch.from_numpy(rows)]
        feat.update(
            Interaction(
                {
                    self.item_id_list_field: torch.from_numpy(history),
                    self.item_list_length_field: torch.from_numpy(lengths),
                }
            )
        )
        return feat


def sequence_offsets(users: np.ndarray) -> np.ndarray:
    """Where each user's interactions begin in an array sorted by user.

    Args:
        users: user ids ``[interactions]``, equal ids adjacent.

    Returns:
        ``[sequences + 1]``; sequence ``s`` is ``offsets[s]:offsets[s + 1]``.
    """
    if len(users) == 0:
        return np.zeros(1, dtype=np.int64)
    changes = np.flatnonzero(users[1:] != users[:-1]) + 1
    return np.concatenate([[0], changes, [len(users)]]).astype(np.int64)


def place_in_run(counts: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each of adjacent runs, of the given lengths ``[R]``."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
