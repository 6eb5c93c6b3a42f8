"""From a trained recommender and a trie to ranked items."""

from recbole_etegrec.decoding.batch import BatchFields, encode_batch
from recbole_etegrec.decoding.beam import BeamRanker, beam_search
from recbole_etegrec.decoding.exact import ExactRanker, ExactScores
from recbole_etegrec.decoding.ranker import CodeRanker, Ranker, Ranking
from recbole_etegrec.decoding.scoring import code_log_probs, score_items

RANKERS: dict[str, type[CodeRanker]] = {"beam": BeamRanker, "exact": ExactRanker}

__all__ = [
    "RANKERS",
    "BatchFields",
    "BeamRanker",
    "CodeRanker",
    "ExactRanker",
    "ExactScores",
    "Ranker",
    "Ranking",
    "beam_search",
    "code_log_probs",
    "encode_batch",
    "score_items",
]
