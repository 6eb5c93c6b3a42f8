"""From atomic files to batches of item ids; codes are unknown here."""

from recbole_etegrec.data.dataset import WholeSequenceDataset
from recbole_etegrec.data.group import Group
from recbole_etegrec.data.item_embedding import (
    ItemContent,
    ItemVectors,
    check_item_embedding,
    embedding_width,
    item_vectors,
    make_content,
    width_of,
)
from recbole_etegrec.data.loader import SequenceBatch
from recbole_etegrec.data.preparation import (
    create_dataset,
    create_recbole_dataset,
    data_preparation,
)

__all__ = [
    "Group",
    "ItemContent",
    "ItemVectors",
    "SequenceBatch",
    "WholeSequenceDataset",
    "check_item_embedding",
    "create_dataset",
    "create_recbole_dataset",
    "data_preparation",
    "embedding_width",
    "item_vectors",
    "make_content",
    "width_of",
]
