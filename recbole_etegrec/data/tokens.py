"""Tokens of a field in the order of their ids, as they lie in a file."""

from collections.abc import Iterator, Mapping

import numpy as np


class Tokens:
    """Stands for the array of tokens that RecBole keeps of a field, without a copy in memory.

    Args:
        words: an arrow array of texts, that of the padding first ``[N]``.
    """

    def __init__(self, words):
        self.words = words

    def of(self, ids: np.ndarray) -> "Tokens":
        """Those of some ids, in their order."""
        return Tokens(self.words.take(ids))

    def tolist(self) -> list[str]:
        """All of them."""
        return list(self)

    def __len__(self) -> int:
        return len(self.words)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 65536):
            yield from self.words.slice(start, 65536).to_pylist()

    def __getitem__(self, ids: int | slice | np.ndarray) -> str | np.ndarray:
        """The token of an id, or an array of those of several."""
        if isinstance(ids, slice):
            ids = np.arange(len(self))[ids]
        if np.ndim(ids):
            ids = np.asarray(ids)
            ids = np.flatnonzero(ids) if ids.dtype == bool else ids
            return np.array(self.words.take(ids).to_pylist(), dtype=np.str_).reshape(len(ids))
        return self.words[int(ids)].as_py()

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        found = np.array(self.words.to_pylist(), dtype=np.str_)
        return found if dtype is None else found.astype(dtype)


class TokenIds(Mapping):
    """Stands for RecBole's dictionary of the ids of tokens; made when it is first asked.

    Args:
        tokens: in the order of their ids.
    """

    def __init__(self, tokens: Tokens):
        self._tokens, self._ids = tokens, None

    def __getitem__(self, token: str) -> int:
        if self._ids is None:
            self._ids = {token: number for number, token in enumerate(self._tokens)}
        return self._ids[token]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tokens)

    def __len__(self) -> int:
        return len(self._tokens)
