"""RecBole models of this plugin, by the name given to ``--model``."""

from recbole_etegrec.model.etegrec_llama import ETEGRecLlama

MODELS: dict[str, type] = {"ETEGRecLlama": ETEGRecLlama}

__all__ = ["MODELS", "ETEGRecLlama"]
