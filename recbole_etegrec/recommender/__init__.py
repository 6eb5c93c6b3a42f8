"""From codes of a history to logits of the next item's codes; items are unknown here."""

from recbole_etegrec.recommender.backbone import BACKBONES
from recbole_etegrec.recommender.code_embedding import CodeEmbedding
from recbole_etegrec.recommender.encoder_decoder import EncoderDecoder
from recbole_etegrec.recommender.recommender import (
    EncodedHistory,
    Recommender,
    RecommenderOutput,
)

__all__ = [
    "BACKBONES",
    "CodeEmbedding",
    "EncodedHistory",
    "EncoderDecoder",
    "Recommender",
    "RecommenderOutput",
]
