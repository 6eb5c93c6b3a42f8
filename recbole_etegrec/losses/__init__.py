"""Losses: plain functions of tensors, one value a target or an item."""

from recbole_etegrec.losses.alignment import (
    preference_semantic_alignment,
    sequence_item_alignment,
)
from recbole_etegrec.losses.quantization import quantization_loss
from recbole_etegrec.losses.recommendation import recommendation_loss

__all__ = [
    "preference_semantic_alignment",
    "quantization_loss",
    "recommendation_loss",
    "sequence_item_alignment",
]
