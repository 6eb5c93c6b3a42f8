"""What every ranker offers, whatever it is made of."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from recbole.data.interaction import Interaction
from recbole.evaluator import metric_information

from recbole_etegrec.config import Config
from recbole_etegrec.data.seen_items import HistoryIndex
from recbole_etegrec.decoding.batch import BatchFields, encode_batch, encode_items
from recbole_etegrec.decoding.recorded import FEW, Asked, RecordedSearch
from recbole_etegrec.decoding.scoring import score_items
from recbole_etegrec.recommender import EncodedHistory, Recommender
from recbole_etegrec.tokenizer import ItemCodes

_Read = TypeVar("_Read")
_Found = TypeVar("_Found")


class Ranking(NamedTuple):
    """Best items first.

    Attributes:
        items: ``[B, K]``; 0 where a row has no more items.
        scores: ``[B, K]``; -inf there.
    """

    items: torch.Tensor
    scores: torch.Tensor


class Part(NamedTuple):
    """A part of the score of items; a score is the sum of its parts, each by its weight.

    Attributes:
        log_probs: in nats ``[B, n]``.
    """

    weight: float
    log_probs: torch.Tensor


class Ranker(ABC):
    """Ranks the items of a catalogue after histories.

    Batches have the fields that `BatchFields` names. Scores are comparable within a row; those of
    the rankers that read codes alone are ``log p(item | history)`` in nats.
    """

    @abstractmethod
    def best(
        self, interaction: Interaction, k: int, excluded: HistoryIndex | None = None
    ) -> Ranking:
        """The ``k`` best items after each history, or all where the catalogue has fewer.

        Args:
            excluded: distinct pairs of row and item that are not to be ranked. A row left with
                fewer than ``k`` items ends in item 0 with score -inf.
        """

    @abstractmethod
    def score(self, interaction: Interaction, items: torch.Tensor) -> torch.Tensor:
        """Scores of given items ``[B, n]`` after each history: ``[B, n]``."""

    @abstractmethod
    def score_all(
        self, interaction: Interaction, excluded: HistoryIndex | None = None
    ) -> torch.Tensor:
        """Scores ``[B, N]`` by item id, -inf where an item is not ranked; item 0 never is."""

    @abstractmethod
    def width(self, k: int) -> int:
        """How many items are found where ``k`` are asked for; the best ``k`` of them are given.

        Two numbers of the same width give rankings of which one is the beginning of the other.
        """

    def propose(
        self, interaction: Interaction, k: int, excluded: HistoryIndex | None = None
    ) -> torch.Tensor:
        """Items that are worth a score ``[B, k]``, as :meth:`best` has them; no score is made."""
        return self.best(interaction, k, excluded).items

    _read: tuple[Interaction, Any] | None = None
    _remembers = False

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Let calls in a block that are of one batch, the same object, read its histories once."""
        self._remembers = True
        try:
            yield
        finally:
            self._remembers, self._read = False, None

    def _once(self, interaction: Interaction, read: Callable[[Interaction], _Read]) -> _Read:
        """What is read of a batch, which is kept where that was asked for."""
        if self._read is not None and self._read[0] is interaction:
            return self._read[1]
        found = read(interaction)
        if self._remembers:
            self._read = interaction, found
        return found

    @property
    def mass(self) -> float:
        """The sum of the weights of the log-probabilities of items that a score is made of."""
        return 1.0

    @abstractmethod
    def prepare(self) -> None:
        """Make now what ranking by the present codes needs, which is else made when it is due."""

    def rehearse(self, interaction: Interaction) -> None:
        """Do what of :meth:`score_all` takes the most memory, to see how much that is."""
        self.score_all(interaction)


class CodeRanker(Ranker):
    """A ranker of `RANKERS`: made of a recommender, a code table, and options of its own.

    Args:
        recommender: it may be trained further, and is asked anew for each batch.
        codes: they may be rebuilt, and their trie is asked for anew for each batch.
        fields: of the batches.

    Attributes:
        keys: the config keys that it takes as options, each an argument of that name.
        records: whether searches of few users on a GPU are recorded.
    """

    keys: ClassVar[tuple[str, ...]] = ()
    records = False
    _memory: dict[str, Any] | None = None  # of rankers that are tried

    def __init__(self, recommender: Recommender, codes: ItemCodes, fields: BatchFields):
        self.recommender, self.codes, self.fields = recommender, codes, fields
        self._recorded: RecordedSearch | None = None

    @staticmethod
    def rules(config: Config) -> Iterator[tuple[bool, str]]:
        """Pairs (whether it is broken, message) of rules between keys that concern this ranker."""
        yield from ()

    def score(self, interaction: Interaction, items: torch.Tensor) -> torch.Tensor:
        """The sum of the parts of the score of each item; see :class:`Ranker`."""
        parts = self.parts(self.encode(interaction), items).values()
        scores = sum(part.weight * part.log_probs for part in parts)
        if len(self.codes.left_out):
            scores = scores.masked_fill(torch.isin(items, self.codes.left_out), -torch.inf)
        return scores

    def parts(self, history: EncodedHistory, items: torch.Tensor) -> dict[str, Part]:
        """What the scores of given items ``[B, n]`` after histories are made of, by name.

        Args:
            history: left as it was.
        """
        return {"codes": Part(1.0, score_items(self.recommender, history, self.codes(items)))}

    def trials(self) -> list["CodeRanker"]:
        """Rankers of which validation is to choose one; none where there is nothing to choose.

        They search a batch once for all of them, so each batch is to be ranked by all in turn, and
        nothing may be trained meanwhile.
        """
        return []

    def _trials_of(self, option: str, values: Sequence[Any]) -> list["CodeRanker"]:
        """A ranker for each value of an option, by the name of its attribute."""
        rankers: list[CodeRanker] = [copy.copy(self) for _ in values]
        memory: dict[str, Any] = {}
        for ranker, value in zip(rankers, values, strict=True):
            setattr(ranker, option, value)
            ranker._memory = memory
        return rankers

    def _found_once(
        self, interaction: Interaction, width: int, find: Callable[[], _Found]
    ) -> _Found:
        """What is found in a batch, once for all rankers that are tried."""
        memory = self._memory
        if memory is None:
            return find()
        if memory.get("of") is not interaction or memory["width"] != width:
            memory.update(of=interaction, width=width, found=find())
        return memory["found"]

    @property
    def chosen(self) -> dict[str, Any]:
        """The options that validation chooses, by their keys; they are kept with the model."""
        return {}

    def take(self, chosen: dict[str, Any]) -> None:
        """Take options that validation has chosen, as far as they are left to it."""

    def prepare(self) -> None:
        """See :class:`Ranker`; there is nothing to make."""

    def encode(self, interaction: Interaction) -> EncodedHistory:
        """The histories of a batch, run through the recommender; to be left as they are."""
        read = partial(encode_batch, self.recommender, self.codes, self.fields)
        return self._once(interaction, read)

    def on_device(self, index: HistoryIndex) -> HistoryIndex:
        """Pairs of row and item where the codes are."""
        rows, items = (part.to(self.codes.table.device) for part in index)
        return rows, items

    # Searches ---------------------------------------------------------------------------------

    def search(
        self,
        history: EncodedHistory,
        width: int,
        excluded: HistoryIndex | None,
        *,
        whole: bool = False,
    ) -> NamedTuple:
        """What is found after histories, as tensors whose first dimension is that of the users.

        Args:
            history: left as it was.
            width: of the search, as :meth:`width` gives it.
            excluded: distinct pairs that are not to be found, on the device; any number of them
                with item 0, which is none.
            whole: whether shapes may depend on those of the arguments alone, and nothing be read
                back from the device, so that it can be recorded.
        """
        raise NotImplementedError

    @torch.no_grad()
    def find(self, interaction: Interaction, width: int, excluded: HistoryIndex | None):
        """What :meth:`search` finds after a batch; after few users on a GPU by a recording."""
        excluded = excluded and self.on_device(excluded)
        items = interaction[self.fields.history]
        few = len(items) <= FEW and items.device.type == "cuda"
        if few and self.records and self.can_record and not self._remembers:
            return self.find_recorded(interaction, width, excluded)
        return self.search(self.encode(interaction), width, excluded)

    @torch.no_grad()
    def find_recorded(self, interaction: Interaction, width: int, excluded: HistoryIndex | None):
        """The same in one of the forms that are recorded; where there is no GPU, computed."""
        held, device = self.held, self.codes.table.device
        if self._recorded is None or any(
            old is not new for old, new in zip(self._recorded.held, held, strict=True)
        ):
            self._recorded = None  # two of them would take as much memory again
            self._recorded = RecordedSearch(self._search_in_form, held, device)
        items = interaction[self.fields.history][:, : int(interaction[self.fields.length].max())]
        return self._recorded(items, width, excluded)

    def _search_in_form(self, batch: Asked, width: int):
        history = encode_items(self.recommender, self.codes, batch.items)
        return self.search(history, width, (batch.rows, batch.excluded), whole=True)

    @property
    def held(self) -> tuple[Any, ...]:
        """What a recording has as it is now: once one of these is another, it is of no use."""
        return self.codes.trie, self.codes.table, self.recommender.backbone

    @property
    def can_record(self) -> bool:
        """Whether a search can be recorded: other attention reads masks back, and encoders too."""
        config = self.recommender.backbone.config
        alone = config._attn_implementation == "sdpa" and not config.is_encoder_decoder
        return alone and not self.recommender.training

    def __getstate__(self) -> dict[str, Any]:
        """A copy makes recordings of its own."""
        return {**vars(self), "_recorded": None}


def candidate_rules(config: Config) -> Iterator[tuple[bool, str]]:
    """The rules of rankers that score candidates: these must hold what is measured."""
    candidates, largest = config["candidates"], max(config["topk"])
    yield (
        candidates < largest,
        f"candidates ({candidates}) must be >= max(topk) ({largest}): raise candidates or "
        "lower topk",
    )
    yield needs_all_scores(config)


def needs_all_scores(config: Config) -> tuple[bool, str]:
    """The rule of rankers that score a part of the catalogue: no metric may need the rest."""
    metrics = [m for m in config["metrics"] if "rec.meanrank" in metric_information[m.lower()]]
    return (
        bool(metrics) and "full" in config["eval_args"]["mode"].values(),
        f"metrics ({', '.join(metrics)}) need the scores of all items: set ranking: exact",
    )
