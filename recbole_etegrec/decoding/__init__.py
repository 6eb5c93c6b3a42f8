"""From a trained recommender and a trie to ranked items."""

from recbole_etegrec.decoding.beam import beam_search
from recbole_etegrec.decoding.exact import ExactRanking
from recbole_etegrec.decoding.scoring import code_log_probs, score_items

__all__ = ["ExactRanking", "beam_search", "code_log_probs", "score_items"]
