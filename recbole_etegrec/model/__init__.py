"""RecBole models of this plugin, by the name given to ``--model``.

Whose defaults each stands on is told in ``config/models.py``.
"""

from recbole_etegrec.model.etegrec import TIGER, ETEGRec
from recbole_etegrec.model.etegrec_llama import ETEGRecLlama

MODELS: dict[str, type] = {"ETEGRecLlama": ETEGRecLlama, "ETEGRec": ETEGRec, "TIGER": TIGER}

__all__ = ["MODELS", "TIGER", "ETEGRec", "ETEGRecLlama"]
