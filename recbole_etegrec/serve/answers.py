"""Ranks for several requests at once, each as `recommend` would."""

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from recbole_etegrec.decoding.recorded import forms
from recbole_etegrec.inference.catalogue import Catalogue
from recbole_etegrec.inference.explain import explain_each
from recbole_etegrec.inference.histories import given_histories
from recbole_etegrec.inference.recommend import Recommendation, catalogue_of, named, rank
from recbole_etegrec.model.protocol import RankingModel

_WARM_USERS = 8  # at once; what more of them ask for is recorded when they come


def warm_up(model: RankingModel, k: int = 10) -> None:
    """Rank after histories of all the lengths that are recorded, before anybody waits for it.

    Only few users on a GPU are ranked by recordings; where there is none, nothing is done.
    """
    if model.device.type != "cuda" or not getattr(model.ranker, "records", False):
        return
    for users, length in forms(model.max_history, _WARM_USERS):
        given = given_histories(model, [[1] * length] * users, exclude=False)
        for _ in range(2):  # the second time it is recorded
            rank(model, given, np.arange(users), k, users)


class Query(NamedTuple):
    """A request to rank items after a history of item ids, which is not empty."""

    history: list[int]
    k: int
    exclude: bool
    explain: bool


class Answers:
    """A model and the names of its items.

    Raises:
        UserError: the two are not of the same items.
    """

    def __init__(self, model: RankingModel, catalogue: Catalogue):
        self.model, self.catalogue = model, catalogue_of(model, catalogue)

    def __call__(self, queries: list[Query]) -> list[list[dict[str, Any]]]:
        """The items for each query, best first, as plain data.

        Only queries of the same width are ranked together: a greater width may find other items,
        and an answer must not depend on the other queries.
        """
        alike: dict[tuple[bool, int], list[int]] = defaultdict(list)
        for number, query in enumerate(queries):
            alike[query.exclude, self.model.ranker.width(query.k)].append(number)
        answers: list[list[dict[str, Any]]] = [[]] * len(queries)
        for (exclude, _), numbers in alike.items():
            histories = [queries[number].history for number in numbers]
            given = given_histories(self.model, histories, exclude)
            k = max(queries[number].k for number in numbers)
            ranking = rank(self.model, given, np.arange(len(numbers)), k, len(numbers))
            for number, found in zip(numbers, named(self.catalogue, ranking), strict=True):
                answers[number] = self._plain(queries[number], found[: queries[number].k])
        return answers

    def _plain(self, query: Query, found: list[Recommendation]) -> list[dict[str, Any]]:
        answer = [recommendation._asdict() for recommendation in found]
        if query.explain and found:
            history = [self.catalogue.tokens[item] for item in query.history]
            wanted = [recommendation.item for recommendation in found]
            explanations = explain_each(self.model, self.catalogue, history, wanted)
            for item, explanation in zip(answer, explanations, strict=True):
                if list(explanation.parts) != ["codes"]:
                    item["parts"] = {
                        name: {"weight": weight, "log_probability": value}
                        for name, (weight, value) in explanation.parts.items()
                    }
                item["steps"] = [
                    {
                        "chosen": step.chosen._asdict(),
                        "alternatives": [choice._asdict() for choice in step.alternatives],
                    }
                    for step in explanation.steps
                ]
        return answer
