"""Using a trained model: what it recommends, and why."""

from recbole_etegrec.inference.catalogue import Catalogue
from recbole_etegrec.inference.explain import Explanation, explain
from recbole_etegrec.inference.recommend import Recommendation, recommend

__all__ = ["Catalogue", "Explanation", "Recommendation", "explain", "recommend"]
