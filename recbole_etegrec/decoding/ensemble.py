"""Several rankers as one: a score is the weighted sum of theirs.

Each member proposes its best items, and all score what any has proposed. Where every member scores
the whole catalogue, so does the ensemble, and its ranking is exact. What a member is made of is
unknown here, and so is where it is kept: it is loaded when it is needed, and need not stay.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import torch
from recbole.data.interaction import Interaction

from recbole_etegrec.data.seen_items import HistoryIndex
from recbole_etegrec.decoding.batch import BatchFields
from recbole_etegrec.decoding.ranker import Part, Ranker, Ranking
from recbole_etegrec.recommender import autocast

Result = TypeVar("Result")
_SCORES = 2**28  # that are held at once where members are ranked in turn, 4 bytes each


class MemberModel(Protocol):
    """What an ensemble asks of a member's model.

    Attributes:
        ranker: ranks by it.
        fields: of the batches that its ranker takes.
        max_history: items of a history that it sees at most.
        precision: of its weights and sums, a name in `PRECISIONS`.
    """

    ranker: Ranker
    fields: BatchFields
    max_history: int
    precision: str


class Member:
    """A model with a weight; it is loaded when it is first ranked with, and then stays.

    Args:
        name: what tables and explanations call it.
        weight: of its scores, above 0.
        load: loads its model.
    """

    def __init__(self, name: str, weight: float, load: Callable[[], MemberModel]):
        self.name, self.weight, self._load = name, weight, load
        self._model: MemberModel | None = None

    @property
    def model(self) -> MemberModel:
        """Its model, which stays."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def borrow(self, work: Callable[[MemberModel], Result]) -> Result:
        """What some work with its model gives; a model that did not stay before is freed then."""
        if self._model is not None:
            return work(self._model)
        result = work(self._load())
        gc.collect()  # models hold themselves in circles
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return result


class Ask(NamedTuple):
    """A batch to be ranked, on the CPU, and the pairs of row and item that are not ranked."""

    interaction: Interaction
    excluded: HistoryIndex | None


class Scored(NamedTuple):
    """Candidates of a batch and what each member gives them, on the CPU.

    Attributes:
        items: ids, each once in a row, padded with 0 ``[B, W]``.
        scores: by member, -inf where an item is padding or excluded ``[M, B, W]``.
    """

    items: torch.Tensor
    scores: torch.Tensor

    def best(self, weights: Sequence[float], k: int) -> Ranking:
        """The ``k`` best of the candidates, or all if there are fewer."""
        total = sum(w * scores for w, scores in zip(weights, self.scores, strict=True) if w)
        scores, order = total.topk(min(k, total.shape[1]))
        items = self.items.gather(1, order)
        return Ranking(items.masked_fill(scores.isneginf(), 0), scores)

    def shortlist(self, k: int) -> "Scored":
        """The same of the ``k`` best of each member alone."""
        k = min(k, self.items.shape[1])
        best = [scores.topk(k) for scores in self.scores]
        items = [
            self.items.gather(1, order).masked_fill(scores.isneginf(), 0) for scores, order in best
        ]
        chosen = union(items)
        # Every chosen item is in its row of the candidates.
        known, order = self.items.sort(dim=1)
        place = torch.searchsorted(known, chosen.contiguous()).clamp_max(known.shape[1] - 1)
        place = order.gather(1, place)
        scores = torch.stack([scores.gather(1, place) for scores in self.scores])
        return Scored(chosen, scores.masked_fill(chosen == 0, -torch.inf))


class EnsembleRanker(Ranker):
    """Ranks by ``sum_m w_m s_m(item)`` over members ``m``.

    Args:
        members: two may be of one model.
        fields: of the batches that it takes.
        n_items: items, the padding item included.
        candidates: items that each member proposes, at least.
        device: where members compute.
    """

    def __init__(
        self,
        members: Sequence[Member],
        fields: BatchFields,
        n_items: int,
        *,
        candidates: int,
        device: torch.device,
    ):
        self.members, self.fields, self.n_items = list(members), fields, n_items
        self.candidates, self.device = candidates, device
        self._exact: bool | None = None

    @property
    def weights(self) -> list[float]:
        """Of the members, in their order."""
        return [member.weight for member in self.members]

    @property
    def mass(self) -> float:
        """See :class:`Ranker`."""
        return sum(one.weight * one.borrow(lambda model: model.ranker.mass) for one in self.members)

    @property
    def exact(self) -> bool:
        """Whether every member scores all items."""
        if self._exact is None:
            widths = [one.borrow(lambda model: model.ranker.width(1)) for one in self.members]
            self._exact = min(widths) >= self.n_items - 1
        return self._exact

    def best(
        self, interaction: Interaction, k: int, excluded: HistoryIndex | None = None
    ) -> Ranking:
        """See :class:`Ranker`."""
        if self._stays_exact():
            scores, items = self.score_all(interaction, excluded).topk(min(k, self.n_items - 1))
        else:
            items, total = self._candidates(interaction, self.width(k), excluded)
            scores, order = total.topk(min(k, total.shape[1]))
            items = items.gather(1, order)
        return Ranking(items.masked_fill(scores.isneginf(), 0), scores)

    def score(self, interaction: Interaction, items: torch.Tensor) -> torch.Tensor:
        """See :class:`Ranker`: the weighted sum of the members' scores."""
        parts = self.parts(interaction, items).values()
        return sum(part.weight * part.log_probs for part in parts)

    def parts(self, interaction: Interaction, items: torch.Tensor) -> dict[str, Part]:
        """What each member gives to items ``[B, n]``, by the member's name."""
        batches = self._batches(interaction)
        return {
            member.name: Part(member.weight, self._scores(member.model, batch, items))
            for member, batch in zip(self.members, batches, strict=True)
        }

    def score_all(
        self, interaction: Interaction, excluded: HistoryIndex | None = None
    ) -> torch.Tensor:
        """See :class:`Ranker`; finite are the scores of candidates, which may be all items."""
        if self._stays_exact():
            pairs = zip(self.members, self._batches(interaction), strict=True)
            return sum(
                member.weight * self._all_scores(member.model, batch, excluded)
                for member, batch in pairs
            )
        items, total = self._candidates(interaction, self.width(1), excluded)
        scores = total.new_full((len(items), self.n_items), -torch.inf)
        scores.scatter_(1, items, total)
        scores[:, 0] = -torch.inf  # where padding went
        return scores

    def width(self, k: int) -> int:
        """See :class:`Ranker`."""
        if self._stays_exact():
            return self.n_items - 1
        return min(max(k, self.candidates), self.n_items - 1)

    def prepare(self) -> None:
        """See :class:`Ranker`: members are loaded."""
        for member in self.members:
            member.model.ranker.prepare()

    def in_turn(self, asks: Sequence[Ask], k: int) -> Iterator[Scored]:
        """Candidates of many batches, with one member in memory at a time.

        Args:
            k: items that each member proposes, at least.
        """
        width = min(max(k, self.candidates), self.n_items - 1)
        columns = self.n_items if self.exact else len(self.members) * width
        for part in _parts(asks, max(_SCORES // (columns * len(self.members)), 1)):
            items = self._proposed_in_turn(part, width)
            scores = [
                member.borrow(partial(self._scores_in_turn, part, items)) for member in self.members
            ]
            for found, each in zip(items, zip(*scores, strict=True), strict=True):
                yield Scored(found, torch.stack(each).masked_fill(found == 0, -torch.inf))

    def _proposed_in_turn(self, asks: Sequence[Ask], width: int) -> list[torch.Tensor]:
        if self.exact:
            return [torch.arange(1, self.n_items).expand(len(ask.interaction), -1) for ask in asks]

        def proposals(model: MemberModel) -> list[torch.Tensor]:
            batches = (self._batch_for(model, ask.interaction) for ask in asks)
            return [
                self._proposed(model, batch, width, ask.excluded).cpu()
                for batch, ask in zip(batches, asks, strict=True)
            ]

        found = [member.borrow(proposals) for member in self.members]
        return [union(each) for each in zip(*found, strict=True)]

    def _scores_in_turn(
        self, asks: Sequence[Ask], items: Sequence[torch.Tensor], model: MemberModel
    ) -> list[torch.Tensor]:
        scores = []
        for ask, found in zip(asks, items, strict=True):
            batch = self._batch_for(model, ask.interaction)
            if self.exact:
                scores.append(self._all_scores(model, batch, ask.excluded)[:, 1:].cpu())
            else:
                scores.append(self._scores(model, batch, found.to(self.device)).cpu())
        return scores

    def _candidates(
        self, interaction: Interaction, width: int, excluded: HistoryIndex | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What any member proposes, and its scores ``[B, W]``, -inf of padding."""
        pairs = list(zip(self.members, self._batches(interaction), strict=True))
        with ExitStack() as stack:  # each member reads the histories once
            for member in self.members:
                stack.enter_context(member.model.ranker.remembering())
            found = [self._proposed(one.model, batch, width, excluded) for one, batch in pairs]
            items = union(found)
            total = sum(one.weight * self._scores(one.model, batch, items) for one, batch in pairs)
        return items, total.masked_fill(items == 0, -torch.inf)

    def _stays_exact(self) -> bool:
        """As `exact`, with members that stay in memory."""
        if self._exact is None:
            self.prepare()
        return self.exact

    # A member -----------------------------------------------------------------------------------

    def _batches(self, interaction: Interaction) -> list[Interaction]:
        return [self._batch_for(member.model, interaction) for member in self.members]

    def _batch_for(self, model: MemberModel, interaction: Interaction) -> Interaction:
        """A batch as a member takes it, on the device: its names, and no more than it sees."""
        history, length = last_items(
            interaction[self.fields.history], interaction[self.fields.length], model.max_history
        )
        batch = Interaction({model.fields.history: history, model.fields.length: length})
        return batch.to(self.device)

    def _proposed(
        self, model: MemberModel, batch: Interaction, k: int, excluded: HistoryIndex | None
    ) -> torch.Tensor:
        with autocast(model.precision, self.device.type):
            return model.ranker.propose(batch, k, excluded)

    def _scores(self, model: MemberModel, batch: Interaction, items: torch.Tensor) -> torch.Tensor:
        """Of given items; those of padding are of no matter."""
        with autocast(model.precision, self.device.type):
            return model.ranker.score(batch, items.clamp_min(1)).float()

    def _all_scores(
        self, model: MemberModel, batch: Interaction, excluded: HistoryIndex | None
    ) -> torch.Tensor:
        with autocast(model.precision, self.device.type):
            return model.ranker.score_all(batch, excluded).float()


def union(items: Sequence[torch.Tensor]) -> torch.Tensor:
    """The distinct items of the rows of several tensors ``[B, k]``, padded with 0: ``[B, W]``."""
    merged = torch.cat(list(items), dim=1).sort(dim=1).values
    twice = merged[:, 1:] == merged[:, :-1]
    merged[:, 1:] = merged[:, 1:].masked_fill(twice, 0)
    merged = merged.sort(dim=1, descending=True).values
    return merged[:, : max(int((merged > 0).sum(dim=1).max()), 1)]


def last_items(
    history: torch.Tensor, length: torch.Tensor, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The last items of histories ``[B, T]``, padded on the right, and how many ``[B]``."""
    if history.shape[1] <= most:
        return history, length
    place = torch.arange(most, device=history.device) + (length - most).clamp_min(0).unsqueeze(1)
    return history.gather(1, place), length.clamp_max(most)


def _parts(asks: Sequence[Ask], most: int) -> Iterator[Sequence[Ask]]:
    """Runs of batches with about so many rows at most."""
    begin, rows = 0, 0
    for number, ask in enumerate(asks):
        if rows and rows + len(ask.interaction) > most:
            yield asks[begin:number]
            begin, rows = number, 0
        rows += len(ask.interaction)
    if rows:
        yield asks[begin:]
