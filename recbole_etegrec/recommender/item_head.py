"""The item head: the state that predicts an item's first code also predicts the item itself.

Items share codes, so what is special about one item has no place in them; here each item has a
vector of its own. It is a projection of the item's embedding, which never learns, and a free
vector: ``v_i = project(z_i) + r_i``. The vector scores its item, and enters beside its last code.

A second reader of histories, an item decoder, has a further part of each vector to itself; the
scores of an item are then the mean of two.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from recbole_etegrec.recommender.item_decoder import ItemDecoder

_FADES = 0.7  # weight of an item of a history, of that of the one after it
_REPEAT_UNIT = 10.0  # nats: a number that learns as slowly as those of matrices gets there in time


def joined(queries: torch.Tensor) -> torch.Tensor:
    """One query ``[n, R * d]`` for queries of readers ``[R, n, d]``; its scores are their mean."""
    return queries.movedim(0, 1).flatten(1) / len(queries)


class ItemHead(nn.Module):
    """Scores all items of a catalogue from one state, ``query(s) . v_i``, or from one a reader.

    Where repeats are learned, the items of a history have one number more in their scores, which
    says how much more or less likely than others they come again.

    Free vectors start at 0, so the head starts from embeddings. Where there is content, items have
    a projection of that besides: ``v_i = describe(c_i) + project(z_i) + r_i``.

    Items beyond those that it was made for, which came later, have no free vector, and where there
    is content no other but that. No training has met them, so their scores are also how alike they
    are to what a history is of.

    Args:
        items: that it learns, the padding item included; the softmax is over them.
        hidden_size: width of a state ``H``.
        embedding_width: width of item embeddings ``d_z``; a reader's part of vectors ``d`` is as
            wide, or ``H`` if less.
        content_width: width of content ``d_c``; 0: there is none.
        finished: rows of a table of vectors in place of content and free vectors, as
            :meth:`finish` makes it; None: there is none.
        enters: whether vectors enter the backbone.
        repeats: whether it learns how likely items of a history come again.
        dropout: on the state that is read, and everywhere in the item decoder.
        vector_dropout: share of the items that do without their free vectors (and, where there is
            content, without their embeddings), drawn anew in each training step, so that the rest
            alone learns to rank too.
        likeness: weight of how alike items that came later are to a history.
        alike: columns of a table of what tells how alike items are, where `finished`.
        decoder_layers: of the item decoder; 0: there is none.
        decoder_size: its width ``h``.
        max_items: that it reads of a history at most.
        init_std: standard deviation of the initial numbers of vectors and of ``enter``.

    Attributes:
        decoder: reads items alone; None: the state of codes is the only one.
        by_rows: whether a step is to move only the free vectors that it reads.
        sparse: whether the gradient of free vectors is of the rows that were read alone.
    """

    by_rows = sparse = False

    def __init__(
        self,
        *,
        items: int,
        hidden_size: int,
        embedding_width: int,
        content_width: int = 0,
        finished: int | None = None,
        enters: bool,
        repeats: bool,
        dropout: float,
        vector_dropout: float,
        init_std: float,
        likeness: float = 0.0,
        alike: int = 0,
        decoder_layers: int = 0,
        decoder_size: int = 0,
        max_items: int = 0,
    ):
        super().__init__()
        self.items, self.vector_dropout, self.likeness = items, vector_dropout, likeness
        # No buffers: they move with their owner.
        self._embedding: torch.Tensor | None = None
        self._content: torch.Tensor | None = None
        self._kept: tuple[list[int], torch.Tensor] | None = None
        self.alike: torch.Tensor | None = None  # made where items came later
        self.width = width = min(hidden_size, embedding_width)
        self.dropout = nn.Dropout(dropout)
        self.query = _linear(hidden_size, width, hidden_size**-0.5)
        self.enter = _linear(width, hidden_size, init_std) if enters else None
        self.decoder = None
        if decoder_layers:
            self.decoder = ItemDecoder(
                width=width,
                hidden_size=decoder_size,
                layers=decoder_layers,
                max_items=max_items,
                dropout=dropout,
                init_std=init_std,
            )
            width *= 2
        self.repeat = nn.Parameter(torch.zeros(1)) if repeats else None
        if finished is None:
            # Embeddings are of unit mean square: vectors begin with numbers of about init_std.
            self.project = _linear(embedding_width, width, init_std * embedding_width**-0.5)
            self.free = nn.Parameter(torch.zeros(items, width))
            self.table = None
            self.describe = None
            if content_width:
                self.describe = _linear(content_width, width, init_std * content_width**-0.5)
        else:
            self.table = nn.Parameter(torch.empty(finished, width), requires_grad=False)
            self.describe = None
            if alike:
                self.alike = nn.Parameter(torch.empty(finished, alike), requires_grad=False)

    def train(self, mode: bool = True) -> "ItemHead":
        """See `nn.Module`; what learns will have other vectors."""
        if mode:
            self._kept = None
        return super().train(mode)

    def lend(self, embedding: torch.Tensor, content: torch.Tensor | None = None) -> None:
        """Let the head read embeddings ``[N, d_z]`` and content ``[N, d_c]`` of all items.

        It keeps no copies.
        """
        self._embedding, self._content, self._kept, self.alike = embedding, content, None, None
        if self.likeness and len(embedding) > self.items and not embedding.is_meta:
            self.alike = F.normalize(embedding if content is None else content, dim=1)

    def finish(self) -> None:
        """Make one table of the vectors of all items; content is not needed any more."""
        if self.alike is not None:
            alike, self.alike = self.alike, None
            self.alike = nn.Parameter(alike, requires_grad=False)
        with torch.no_grad():
            self.table = nn.Parameter(self.all_vectors().clone(), requires_grad=False)
        self._embedding = self._content = self._kept = None
        del self.project, self.free, self.describe

    @property
    def reads(self) -> bool:
        """Whether anything reads vectors of the items of histories."""
        return self.enter is not None or self.decoder is not None

    def vectors(self, items: torch.Tensor | None = None) -> torch.Tensor:
        """Vectors of items ``[...]``, or of all of them: ``[..., R * d]``, in fp32."""
        if self.table is not None:
            return self.table if items is None else F.embedding(items, self.table)
        return self._vectors(items, drop=self.training)

    def vectors_of(self, wanted: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Vectors of several tensors of items, made at once ``[..., R * d]`` each."""
        flat = torch.cat([items.flatten() for items in wanted])
        if len(flat) < len(self._embedding) or self.sparse:
            vectors = self.vectors(flat)
        else:
            vectors = F.embedding(flat, self.vectors())
        parts = vectors.split([items.numel() for items in wanted])
        return [part.unflatten(0, items.shape) for part, items in zip(parts, wanted, strict=True)]

    @torch.no_grad()
    def all_vectors(self) -> torch.Tensor:
        """Vectors of all items ``[N, R * d]`` to rank with, kept until they are others."""
        if self.table is not None:
            return self.table
        # Whatever is written into a tensor raises its version.
        read = [self._embedding, self._content, *self.parameters()]
        versions = [t._version for t in read if t is not None]
        if self._kept is None or self._kept[0] != versions:
            self._kept = versions, self._vectors(None, drop=False)
        return self._kept[1]

    def _vectors(self, items: torch.Tensor | None, *, drop: bool) -> torch.Tensor:
        def of(table: torch.Tensor) -> torch.Tensor:
            return table if items is None else F.embedding(items, table)

        if self.sparse and items is not None:
            free = F.embedding(items, self.free, sparse=True)
        else:
            free = of(self._free_of_all())
        projected = self._linear(self.project, of(self._embedding))
        kept = None
        if drop and self.vector_dropout:
            kept = torch.rand_like(free[..., :1]) >= self.vector_dropout
        if self.describe is None:
            return projected + (free if kept is None else free * kept)
        own = projected + free
        if kept is not None:
            own = own * kept
        if items is None:
            own = F.pad(own[: self.items], (0, 0, 0, len(own) - self.items))  # not of later items
        else:
            own = own * (items < self.items).unsqueeze(-1)
        return self._linear(self.describe, of(self._content)) + own

    def entry(self, vectors: torch.Tensor) -> torch.Tensor:
        """What vectors ``[..., R * d]`` add to the last codes of their items ``[..., H]``."""
        return self.enter(vectors[..., : self.width]).float()

    def read(self, vectors: torch.Tensor, target_index: torch.Tensor) -> torch.Tensor | None:
        """States of the item decoder that predict targets ``[n, h]``; None where there is none.

        Args:
            vectors: of the items of sequences, padded on the right ``[B, T, R * d]``.
            target_index: flat index into ``[B, T - 1]`` of positions to predict from ``[n]``.
        """
        if self.decoder is None:
            return None
        states = self.decoder(vectors[:, :-1, self.width :])
        return states.flatten(0, 1).index_select(0, target_index)

    def read_to_end(self, vectors: torch.Tensor, real: torch.Tensor) -> torch.Tensor | None:
        """States of the item decoder after histories ``[B, h]``, 0 after those without an item.

        Args:
            vectors: of their items, padded on the right ``[B, T, R * d]``.
            real: which of them are no padding ``[B, T]``.
        """
        if self.decoder is None:
            return None
        if not real.shape[1]:
            return vectors.new_zeros(len(vectors), self.decoder.query.in_features)
        states = self.decoder(vectors[..., self.width :])
        last = (real * torch.arange(real.shape[1], device=real.device)).argmax(dim=1)
        return states[torch.arange(len(states), device=last.device), last]

    def ask(self, state: torch.Tensor, own_state: torch.Tensor | None = None) -> torch.Tensor:
        """Queries of the readers ``[R, n, d]``, in fp32; each reads its own part of vectors.

        Args:
            state: of the decoder of codes ``[n, H]``.
            own_state: of the item decoder, where there is one ``[n, h]``.
        """
        queries = [self.query(self.dropout(state)).float()]
        if self.decoder is not None:
            queries.append(self.decoder.ask(own_state))
        return torch.stack(queries)

    @property
    def repeat_bonus(self) -> torch.Tensor | None:
        """What items of a history get on top of their scores, in nats ``[1]``; None: nothing."""
        return None if self.repeat is None else _REPEAT_UNIT * self.repeat

    @torch.no_grad()
    def taste(self, items: torch.Tensor, real: torch.Tensor) -> torch.Tensor | None:
        """What histories are of ``[B, d]``: a mean of their items, the last weighing most.

        Args:
            items: ids ``[B, T]``.
            real: which are no padding ``[B, T]``.

        Returns:
            Vectors of unit length; None where no items came later.
        """
        if self.alike is None:
            return None
        real = real.to(self.alike)
        after = real.flip(1).cumsum(1).flip(1) - real
        weights = real * _FADES**after
        return F.normalize(torch.einsum("bt,btd->bd", weights, self.alike[items]), dim=1)

    @torch.no_grad()
    def log_probs(
        self,
        query: torch.Tensor,
        history: torch.Tensor | None = None,
        taste: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``log p(item | history)`` of all items, in nats ``[B, N]``; of the padding item -inf.

        The softmax is over the items that the head learned. So items that came later take
        nothing from the others, and have a score of the same scale.

        Args:
            query: of histories, as :func:`joined` gives it ``[B, R * d]``.
            history: ids of its items, padded with 0 ``[B, T]``; None: it counts for nothing.
            taste: of the histories, as :meth:`taste` gives it.
        """
        with torch.autocast(query.device.type, enabled=False):
            scores = query @ self.all_vectors().T
        if history is not None and self.repeat is not None:
            # An item that is there twice is written twice, with the same score.
            scores.scatter_(1, history, scores.gather(1, history) + self.repeat_bonus)
        scores -= scores[:, 1 : self.items].logsumexp(dim=1, keepdim=True)
        scores[:, 0].fill_(-torch.inf)
        if taste is not None:
            scores[:, self.items :] += self.likeness * taste @ self.alike[self.items :].T
        return scores

    def _free_of_all(self) -> torch.Tensor:
        """Free vectors, 0 for items that came later."""
        later = len(self._embedding) - len(self.free)
        return F.pad(self.free, (0, 0, 0, later)) if later else self.free

    def _linear(self, layer: nn.Linear, values: torch.Tensor) -> torch.Tensor:
        with torch.autocast(values.device.type, enabled=False):
            return layer(values)


def _linear(width_in: int, width_out: int, std: float) -> nn.Linear:
    layer = nn.Linear(width_in, width_out, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer
