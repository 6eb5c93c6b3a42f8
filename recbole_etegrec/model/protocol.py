"""What a model offers to whoever ranks with it, be it trained or exported."""

from typing import Protocol

import torch

from recbole_etegrec.decoding import BatchFields, Ranker
from recbole_etegrec.recommender import Recommender
from recbole_etegrec.tokenizer import ItemCodes


class RankingModel(Protocol):
    """What ranks the items of a catalogue, be it one model or several.

    Attributes:
        ranker: ranks by all of it.
        device: where it computes.
        left_out: items that are gone from the data and not ranked ``[n]``.
        fields: RecBole's names of the fields of a batch.
        n_items: items, the padding item included.
        max_history: items of a history that are seen at most.
        precision: of weights and sums, a name in `PRECISIONS`.
        exclude_history: whether items of a history leave its ranking, where nothing else is said.
    """

    ranker: Ranker
    device: torch.device
    left_out: torch.Tensor
    fields: BatchFields
    n_items: int
    max_history: int
    precision: str
    exclude_history: bool

    def eval(self) -> "RankingModel":
        """Turn dropout off."""


class CodeModel(RankingModel, Protocol):
    """One model: a recommender, the codes of items, and a ranker made of these.

    Attributes:
        item_embedding: of all items ``[N, d_z]``; an exported model has none.
    """

    recommender: Recommender
    codes: ItemCodes
    item_embedding: torch.Tensor | None
