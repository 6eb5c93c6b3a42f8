"""From codes of a history to logits of the next item's codes; items are unknown here."""

from recbole_etegrec.recommender.backbone import BACKBONES
from recbole_etegrec.recommender.build import build_recommender, empty_recommender
from recbole_etegrec.recommender.candidates import Candidates, draw_candidates, sample_size
from recbole_etegrec.recommender.code_embedding import CodeEmbedding
from recbole_etegrec.recommender.encoder_decoder import EncoderDecoder
from recbole_etegrec.recommender.item_head import ItemHead
from recbole_etegrec.recommender.precision import PRECISIONS, autocast
from recbole_etegrec.recommender.prefixes import PrefixTree
from recbole_etegrec.recommender.recommender import Recommender
from recbole_etegrec.recommender.spec import RecommenderSpec, Tuning
from recbole_etegrec.recommender.structures import (
    Branches,
    EncodedHistory,
    MixedRows,
    RecommenderOutput,
)

__all__ = [
    "BACKBONES",
    "Branches",
    "Candidates",
    "CodeEmbedding",
    "EncodedHistory",
    "EncoderDecoder",
    "ItemHead",
    "MixedRows",
    "PRECISIONS",
    "PrefixTree",
    "Recommender",
    "RecommenderOutput",
    "RecommenderSpec",
    "Tuning",
    "autocast",
    "build_recommender",
    "draw_candidates",
    "empty_recommender",
    "sample_size",
]
