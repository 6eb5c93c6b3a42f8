"""The batches that are ranked: what RecBole calls their fields, and how their histories are run."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from recbole.data.interaction import Interaction

from recbole_etegrec.recommender import EncodedHistory, Recommender
from recbole_etegrec.tokenizer import ItemCodes


class BatchFields(NamedTuple):
    """RecBole's names of the fields of a batch.

    Attributes:
        item: the target of each row ``[B]``; to rank, none is needed.
        history: item ids, padded with 0 on the right ``[B, T]``.
        length: items of each history ``[B]``.
    """

    item: str
    history: str
    length: str


@torch.no_grad()
def encode_batch(
    recommender: Recommender,
    codes: ItemCodes,
    fields: BatchFields,
    interaction: Interaction | Mapping[str, torch.Tensor],
) -> EncodedHistory:
    """Run the histories of a batch through a recommender; padding that no row needs is cut off."""
    history = interaction[fields.history][:, : int(interaction[fields.length].max())]
    return encode_items(recommender, codes, history)


@torch.no_grad()
def encode_items(
    recommender: Recommender, codes: ItemCodes, history: torch.Tensor
) -> EncodedHistory:
    """The same of item ids, padded with 0 on the right ``[B, T]``; nothing is read back."""
    real = history > 0
    given = {} if recommender.item_head is None else {"items": history}
    if (prefix := codes.prefix(history, real)) is not None:
        given["prefix"] = prefix
    found = recommender.encode_history(codes(history), real, **given)
    return found._replace(items=history)
