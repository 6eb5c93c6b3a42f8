"""Pre-split files for RecBole's own models: the interactions, histories and items of the plugin's.

RecBole gives targets and histories ids of their own, and cuts no history to
``MAX_ITEM_LIST_LENGTH``; and its general models do not see what histories say.
"""

import numpy as np
from recbole.data.dataset import Dataset

from recbole_etegrec.data.dataset import WholeSequenceDataset, select_rows
from recbole_etegrec.data.sequences import place_in_run


class PresplitSequences(WholeSequenceDataset):
    """For sequential models, which have a row for each target of the training part too."""

    def build(self) -> list[Dataset]:
        """Split into training, validation and test parts, each of rows with histories."""
        train, *held_out = super().build()
        start, end, supervised_from = train.windows
        counts = end - supervised_from
        targets = np.repeat(supervised_from, counts) + place_in_run(counts)
        items = train.inter_feat[self.iid_field].numpy()
        lengths = targets - np.repeat(start, counts)
        feat = select_rows(train.inter_feat, targets)
        return [self._held_out("train", feat, items, targets, lengths), *held_out]


class PresplitInteractions(WholeSequenceDataset):
    """For general models, which learn who has done what, in whichever order."""

    inter_matrix = Dataset.inter_matrix
