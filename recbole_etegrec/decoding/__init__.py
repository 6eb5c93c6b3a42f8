"""From a trained recommender and a trie to ranked items."""

from recbole_etegrec.config import Config
from recbole_etegrec.decoding.batch import BatchFields, encode_batch
from recbole_etegrec.decoding.beam import BeamRanker, beam_search
from recbole_etegrec.decoding.ensemble import Ask, EnsembleRanker, Member, Scored
from recbole_etegrec.decoding.exact import ExactRanker, ExactScores
from recbole_etegrec.decoding.fused import FusedRanker, HeadRanker
from recbole_etegrec.decoding.logits import LogitRanker
from recbole_etegrec.decoding.ranker import CodeRanker, Part, Ranker, Ranking
from recbole_etegrec.decoding.scoring import code_log_probs, score_codes, score_items

RANKERS: dict[str, type[CodeRanker]] = {
    "beam": BeamRanker,
    "exact": ExactRanker,
    "fused": FusedRanker,
    "head": HeadRanker,
}


def ranking_of(config: Config) -> str:
    """The name of the ranker of a config, which may leave it to the parts that the model has."""
    return config["ranking"] or ("fused" if config["item_head"] else "beam")


__all__ = [
    "RANKERS",
    "Ask",
    "BatchFields",
    "BeamRanker",
    "CodeRanker",
    "EnsembleRanker",
    "ExactRanker",
    "ExactScores",
    "FusedRanker",
    "HeadRanker",
    "LogitRanker",
    "Member",
    "Part",
    "Ranker",
    "Ranking",
    "Scored",
    "beam_search",
    "code_log_probs",
    "encode_batch",
    "ranking_of",
    "score_codes",
    "score_items",
]
