"""How data, item embeddings, tokenizer and ranking grow; see `__main__.py`."""

from tests.benchmarks.scale.generate import generate

__all__ = ["generate"]
