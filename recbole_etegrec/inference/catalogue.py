"""The items of a model by the names that its user knows: tokens and titles.

It is made of plain lists, so that it can be had without a dataset; models and codes are unknown
here.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from recbole.data.dataset import Dataset

from recbole_etegrec.data.atomic_files import AtomicFiles
from recbole_etegrec.data.item_file import read_titles
from recbole_etegrec.errors import UserError, nearest
from recbole_etegrec.storage.printable import one_line

_WIDTH = 40  # characters of a title where it is printed


class Catalogue:
    """Tokens of all items, in the order of their ids, and titles of those that have one.

    Args:
        tokens: of every id; that of id 0, the padding item, is never found.
        titles: by token; items without one, or with an empty one, have None.
        counts: how often each was chosen, where that is known.

    Attributes:
        tokens: ``[N]``.
        titles: ``[N]``.
        counts: ``[N]``, 0 where it is not known.
    """

    def __init__(
        self,
        tokens: Sequence[str],
        titles: Mapping[str, str] | None = None,
        counts: Sequence[int] | None = None,
    ):
        titles = titles or {}
        self.counts = [*map(int, counts or ())] + [0] * (len(tokens) - len(counts or ()))
        self.tokens = [str(token) for token in tokens]
        self.titles = [titles.get(token) or None for token in self.tokens]
        self._id_of = {token: number for number, token in enumerate(self.tokens) if number}

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> "Catalogue":
        """The items of a dataset of RecBole's, with titles from its `.item` file."""
        further = getattr(dataset, "further_titles", {})  # not of RecBole's own datasets
        titles = {**read_titles(AtomicFiles.of(dataset.config)), **further}
        tokens = dataset.field2id_token[dataset.iid_field]
        sequences = getattr(dataset, "sequences", None)
        if sequences is None:
            chosen = np.asarray(dataset.inter_feat[dataset.iid_field])
            counts = np.bincount(chosen, minlength=len(tokens))
        else:
            counts = sequences.counts(len(tokens))
        return cls(tokens, titles, counts.tolist())

    def __len__(self) -> int:
        """The number of items, the padding item included."""
        return len(self.tokens)

    def record(self) -> dict[str, list]:
        """What a catalogue is made of, as plain data."""
        return {"tokens": self.tokens, "titles": self.titles, "counts": self.counts}

    def find(self, tokens: Iterable[str]) -> tuple[list[int], list[str]]:
        """Return the ids of known tokens, in their order, and the distinct unknown tokens."""
        ids, unknown = [], {}
        for token in map(str, tokens):
            if token in self._id_of:
                ids.append(self._id_of[token])
            else:
                unknown[token] = None
        return ids, list(unknown)

    def ids(self, tokens: Iterable[str]) -> list[int]:
        """Ids of tokens.

        Raises:
            UserError: some are not known; it lists them.
        """
        ids, unknown = self.find(tokens)
        if unknown:
            hint = nearest(unknown[0], self._id_of) if len(unknown) == 1 else ""
            raise UserError(f"items that the model does not know: {', '.join(unknown)}{hint}")
        return ids

    def name(self, item: int) -> str:
        """The title of an item, or its token where it has none."""
        return self.titles[item] or self.tokens[item]


def cut(title: str) -> str:
    """Make a title one line, and shorten it to the room there is where it is printed."""
    title = one_line(title)
    return title if len(title) <= _WIDTH else title[: _WIDTH - 3] + "..."
