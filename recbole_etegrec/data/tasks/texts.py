"""Texts of items as tokens of a pretrained decoder."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# Texts to tokens of each; characters that spell a special token are characters like any other.
Encode = Callable[[Sequence[str]], list[list[int]]]


class Vocabulary(NamedTuple):
    """How a pretrained decoder writes texts.

    Attributes:
        encode: texts to tokens.
        begin: tokens that each row begins with.
        end: tokens that each text which is asked for ends with.
    """

    encode: Encode
    begin: list[int]
    end: list[int]


class ItemTexts:
    """Tokens of a text of each item, by its id.

    Args:
        texts: of all items, the padding item included; empty where there is none.
        vocabulary: writes them.
        most: tokens of a text that are kept at most.
        spaced: whether a space comes before each.
    """

    def __init__(self, texts: Sequence[str], vocabulary: Vocabulary, most: int, *, spaced: bool):
        known = [n for n, text in enumerate(texts) if text]
        space = " " if spaced else ""
        encoded = vocabulary.encode([space + texts[n] for n in known]) if known else []
        self.lengths = np.zeros(len(texts), dtype=np.int64)
        self.tokens = {n: ids[:most] for n, ids in zip(known, encoded, strict=True) if ids}
        for n, ids in self.tokens.items():
            self.lengths[n] = len(ids)

    def __getitem__(self, item: int) -> list[int]:
        return self.tokens.get(item, [])
