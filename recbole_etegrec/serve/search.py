"""Finds items by words of their titles, or by their tokens."""

from typing import Any

from recbole_etegrec.inference.catalogue import Catalogue


class Search:
    """A catalogue that is searched without regard to case."""

    def __init__(self, catalogue: Catalogue):
        self._catalogue = catalogue
        names = zip(catalogue.tokens, catalogue.titles, strict=True)
        self._texts = [f"{title or ''}\n{token}".casefold().strip() for token, title in names]

    def __call__(self, query: str, limit: int) -> list[dict[str, Any]]:
        """Find items whose title or token has all words of a query.

        An item whose token is the query comes first, then items that begin with it, then the rest;
        of each the popular ones first. An empty query finds all.
        """
        whole = query.casefold().strip()
        words = whole.split()
        places = []
        for item, text in enumerate(self._texts[1:], start=1):
            if all(word in text for word in words):
                token = self._catalogue.tokens[item].casefold()
                begins = text.startswith(whole) or token.startswith(whole)
                popular = -self._catalogue.counts[item]
                places.append((token != whole, not begins, popular, item))
        return [
            {"item": self._catalogue.tokens[item], "title": self._catalogue.titles[item]}
            for *_, item in sorted(places)[:limit]
        ]
