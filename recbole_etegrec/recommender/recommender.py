"""The recommender: codes of a history in, logits of the next item's codes out.

It knows codes, and items by their vectors alone where it has a head for them; nothing of training
stages. Layout of a sequence of items, four
codes each: ``[c0 c1 c2 c3 | c0 c1 c2 c3 | ...]``. Code ``j`` of an item is predicted from the
state of the token before it, so the state of an item's last code predicts the next item's first.
All padding is on the right, where causality hides it: reading a sequence takes no mask for it.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from recbole_etegrec.recommender.backbone import (
    additive_mask,
    cached,
    causal_attention,
    masked_attention,
    new_cache,
    residual_dtype,
)
from recbole_etegrec.recommender.candidates import Candidates
from recbole_etegrec.recommender.code_embedding import CodeEmbedding
from recbole_etegrec.recommender.item_head import ItemHead, joined
from recbole_etegrec.recommender.prefixes import PrefixTree
from recbole_etegrec.recommender.repeats import seen_before
from recbole_etegrec.recommender.structures import (
    Branches,
    EncodedHistory,
    MixedRows,
    RecommenderOutput,
)
from recbole_etegrec.recommender.text_tokens import TextTokens


class Recommender(nn.Module):
    """Backbone, tied code embedding, and the adapters of the alignment losses.

    Args:
        backbone: a decoder taking ``inputs_embeds`` ``[B, S, H]``.
        code_embedding: of the same ``H``.
        semantic_hidden_size: width of item embeddings ``d_z``.
        dropout: on the input embeddings and the final states.
        alignment_pooling: the state SIA and PSA read: ``last`` (the last history token, which has
            seen the whole history) or ``mean`` over the history's tokens.
        init_std: standard deviation of the adapters' initial weights.

    Attributes:
        item_head: predicts items beside their codes; None unless it is given one.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        code_embedding: CodeEmbedding,
        *,
        semantic_hidden_size: int,
        dropout: float,
        alignment_pooling: str,
        init_std: float,
    ):
        super().__init__()
        hidden_size = backbone.config.hidden_size
        self.backbone = backbone
        self.residual_dtype = residual_dtype(backbone)  # fp32, but with frozen bf16 or fp16 weights
        self.code_embedding = code_embedding
        self.dropout = nn.Dropout(dropout)
        self.alignment_pooling = alignment_pooling
        self.enc_adapter = _adapter(hidden_size, code_embedding.codebooks.shape[-1], init_std)
        self.dec_adapter = _adapter(hidden_size, semantic_hidden_size, init_std)
        self.item_head: ItemHead | None = None
        self.text: TextTokens | None = None

    @property
    def heads(self) -> list[nn.Module]:
        """All but the backbone."""
        heads = [self.code_embedding, self.enc_adapter, self.dec_adapter]
        further = (self.item_head, self.text)
        return [*heads, *(head for head in further if head is not None)]

    @property
    def sequence_parts(self) -> dict[str, nn.Module]:
        """What turns code vectors into states, by what it is called in reports."""
        return {"decoder, language model": self.backbone}

    def forward(
        self,
        codes: torch.Tensor,
        target_index: torch.Tensor,
        items: torch.Tensor | None = None,
        candidates: Candidates | None = None,
        taught: torch.Tensor | None = None,
        prefix: torch.Tensor | None = None,
        rows: MixedRows | None = None,
        branches: Branches | None = None,
    ) -> RecommenderOutput:
        """Predict many items of each sequence in one pass.

        Args:
            codes: of the items of sequences, padded on the right ``[B, T, L]``.
            target_index: flat index into ``[B, T - 1]`` of positions to predict from ``[n]``;
                position ``t`` predicts item ``t + 1``.
            items: ids of the items ``[B, T]``, for the item head.
            candidates: the items that the item head is to tell targets from; None: it is not asked.
            taught: items that a teacher scores for each target ``[n, K]``; None: there is none.
            prefix: what stands before the codes, as mixed tokens ``[B, P]``; None: nothing does.
            rows: of texts and codes, which are read apart; None: there are none.
            branches: items that are asked for besides, in the same pass.
        """
        own, vectors, known = self._read_vectors(items, target_index, candidates, taught)
        hidden, log_probs = self._read_codes(codes, own, prefix, branches)
        # States of the tokens just before each target code: a shift by L - 1 tokens.
        length = codes.shape[-1]
        before = hidden[:, length - 1 :].unflatten(1, (-1, length)).flatten(0, 1)
        before = before.index_select(0, target_index).float()  # [n, L, H]
        state = before[:, 0]
        if self.alignment_pooling == "mean":
            state = _mean_states(hidden, length).index_select(0, target_index)
        output = RecommenderOutput(
            self.code_embedding.logits(before),
            self.enc_adapter(state),
            self.dec_adapter(state),
            taught_vectors=known,
            branch_log_probs=log_probs,
        )
        if rows is not None:
            among = vectors if candidates is not None and candidates.whole else None
            output = output._replace(**self._read_rows(rows, among))
            if vectors is None and self.item_head is not None:
                # Nobody asks the head, but distributed wrappers want a gradient for all of it.
                vectors = self.item_head.vectors(rows.items[:1])
        elif self.text is not None:
            output = output._replace(text_nll=self.text.nothing())
        if vectors is None:
            return output
        query = self.item_head.ask(before[:, 0], self.item_head.read(own, target_index))
        bonus, seen = self.item_head.repeat_bonus, None
        if candidates is not None and bonus is not None:
            seen = seen_before(items, target_index)
        return output._replace(
            item_query=query, item_vectors=vectors, item_seen=seen, repeat_bonus=bonus
        )

    def _read_codes(
        self,
        codes: torch.Tensor,
        own: torch.Tensor | None,
        prefix: torch.Tensor | None,
        branches: Branches | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """States of the codes of sequences but the last, and what branches give; see `forward`.

        Args:
            own: vectors of the items of the sequences ``[B, T, R * d]``, where they are read.

        Returns:
            ``[B, T * L - 1, H]``, and log-probabilities ``[B, K, L]``; None: there are no branches.
        """
        embeddings = self._embed(codes, own).flatten(1, 2)[:, :-1]  # nothing follows
        first = 0 if prefix is None else prefix.shape[1]
        if prefix is not None:
            embeddings = torch.cat([self._embed_mixed(prefix), embeddings], dim=1)
        if branches is None:
            return self._run(embeddings)[:, first:], None
        hidden, log_probs = self._run_with(branches, embeddings, first)
        return hidden[:, first:], log_probs

    def _read_vectors(
        self,
        items: torch.Tensor | None,
        target_index: torch.Tensor,
        candidates: Candidates | None,
        taught: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Vectors of items, made once for all that read them; see :meth:`forward`.

        Returns:
            Those of the sequences ``[B, T, R * d]``, of targets and candidates ``[M, R * d]`` as
            `Candidates.places_of` has it, and of what is taught ``[n, K, R * d]``; None: unread.
        """
        if candidates is None:
            return self._vectors(items), None, None
        wanted = [items, candidates.ids, *([] if taught is None else [taught])]
        if candidates.whole:
            vectors = self.item_head.vectors()
            own, _, *known = (F.embedding(ids, vectors) for ids in wanted)
        else:
            own, vectors, *known = self.item_head.vectors_of(wanted)
            targets = own[:, 1:].flatten(0, 1).index_select(0, target_index)
            vectors = torch.cat([targets, vectors])
        return own, vectors, (known[0] if known else None)

    @torch.no_grad()
    def match_scale(
        self, codes: torch.Tensor, target_index: torch.Tensor, items: torch.Tensor | None = None
    ) -> None:
        """Let codes enter at the scale of the backbone's own tokens, and logits leave at 1.

        Three factors do it, found on a batch as in :meth:`forward`: of the collision table and that
        of users' codes, whose rows become as long as those of the codebooks; of the projector into
        the backbone; of the projector out of it, after which the logits of a position deviate by 1
        from their mean.
        Vectors of items enter at the scale of codes.
        """
        embedding = self.code_embedding
        embedding.collision_table *= _rms(embedding.codebooks) / _rms(embedding.collision_table)
        if embedding.user_table is not None:
            embedding.user_table *= _rms(embedding.codebooks) / _rms(embedding.user_table)
        own = self.backbone.token_rms
        embedding.scid_projector.weight *= own / _rms(embedding.embed(codes[codes.any(dim=2)]))
        if self.item_head is not None and self.item_head.enter is not None:
            self.item_head.enter.weight *= own / _rms(
                self.item_head.entry(self._vectors(items[items > 0]))
            )
        with_items = {} if self.item_head is None else {"items": items}
        logits = self(codes, target_index, **with_items).logits
        embedding.output_projector.weight /= _rms(logits - logits.mean(dim=-1, keepdim=True))

    def encode_history(
        self,
        codes: torch.Tensor,
        real: torch.Tensor,
        items: torch.Tensor | None = None,
        prefix: torch.Tensor | None = None,
    ) -> EncodedHistory:
        """Run histories and keep their cache.

        Args:
            codes: of their items, padded on the right ``[B, T, L]``.
            real: which of these are no padding, as booleans ``[B, T]``.
            items: ids of the items ``[B, T]``, for the item head.
            prefix: what stands before the codes, as mixed tokens ``[B, P]``. -1 is padding, which
                is on the right, too: only a row without items may have it.
        """
        cache = new_cache()
        visible = real.repeat_interleave(codes.shape[-1], dim=1)
        own = self._vectors(items)
        embeddings = self._embed(codes, own).flatten(1, 2)
        if prefix is not None:
            embeddings = torch.cat([self._embed_mixed(prefix.clamp_min(0)), embeddings], dim=1)
            visible = torch.cat([prefix >= 0, visible], dim=1)
        hidden = self._run(embeddings, cache)
        position = torch.arange(visible.shape[1], device=codes.device)
        last = (visible * position).argmax(dim=1)
        state = hidden[torch.arange(len(codes), device=codes.device), last].float()
        history = EncodedHistory(cache, visible, state, visible.sum(dim=1), items=items)
        if self.item_head is None:
            return history
        queries = self.item_head.ask(state, self.item_head.read_to_end(own, real))
        taste = self.item_head.taste(items, real)
        return history._replace(query=joined(queries), taste=taste)

    def extend(
        self,
        history: EncodedHistory,
        embeddings: torch.Tensor,
        depth: torch.Tensor,
        sees: torch.Tensor,
    ) -> torch.Tensor:
        """Run further tokens that all stand after the same history, as nodes of a tree.

        Branches share the history's keys and values; which earlier node a node may see is a
        matter of the mask alone, so nothing is copied or reordered. The cache grows by ``n``.

        Args:
            history: encoded histories of ``B`` users.
            embeddings: of the new tokens ``[B, n, H]``.
            depth: codes between the end of the history and each token ``[n]``.
            sees: for each new token, which tokens beyond the history it attends to, itself
                included ``[B or 1, n, cached beyond history + n]``.

        Returns:
            States ``[B, n, H]``.
        """
        rows, new = embeddings.shape[:2]
        visible = torch.cat(
            [
                history.visible.unsqueeze(1).expand(-1, new, -1),
                sees.expand(rows, -1, -1),
            ],
            dim=-1,
        ).unsqueeze(1)  # [B, 1, n, keys]
        with masked_attention(self.backbone):
            output = self.backbone(
                inputs_embeds=embeddings.to(self.residual_dtype),
                attention_mask=additive_mask(visible, self.residual_dtype),
                position_ids=history.length.unsqueeze(1) + depth,
                **cached(self.backbone, history.cache),
            )
        return output.last_hidden_state.float()

    def _embed_mixed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mixed tokens ``[B, S]`` → ``[B, S, H]``."""
        embedding = self.code_embedding
        if self.text is None:
            return embedding.embed_tokens(tokens)
        codes = embedding.embed_tokens(tokens.clamp_max(embedding.count - 1))
        words = self.text.embed((tokens - embedding.count).clamp_min(0))
        return torch.where((tokens < embedding.count).unsqueeze(-1), codes, words)

    def _read_rows(
        self, rows: MixedRows, vectors: torch.Tensor | None
    ) -> dict[str, torch.Tensor | None]:
        """What rows of mixed tokens give to :class:`RecommenderOutput`.

        Args:
            vectors: of all items ``[N, R * d]``, where the item head has made them already.
        """
        tokens = self._embed_mixed(rows.tokens)
        if self.item_head is not None and self.item_head.enter is not None:
            entry = self.item_head.entry(self._vectors(rows.items, vectors))
            flat = tokens.flatten(0, 1).index_add(0, rows.item_index, entry)
            tokens = flat.view_as(tokens)
        # The decoder knows texts as they are: dropout is for what it learns to read anew.
        text = (rows.tokens >= self.code_embedding.count).unsqueeze(-1)
        tokens = torch.where(text, tokens, self.dropout(tokens))
        hidden = self._states_of_rows(tokens, rows.positions).flatten(0, 1)
        before = self.dropout(hidden.index_select(0, rows.code_index.flatten() - 1)).float()
        logits = self.code_embedding.logits(before.unflatten(0, rows.code_index.shape))
        if self.text is None:
            return {"row_logits": logits}
        wanted = rows.tokens.flatten()[rows.text_index] - self.code_embedding.count
        nll = self.text.nll(hidden.index_select(0, rows.text_index - 1), wanted)
        return {"row_logits": logits, "text_nll": nll}

    def _vectors(
        self, items: torch.Tensor | None, of_all: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """Vectors of items that are read ``[..., R * d]``; None where nothing reads them.

        Args:
            of_all: vectors of all items ``[N, R * d]``, where they are made already.
        """
        if self.item_head is None or not self.item_head.reads:
            return None
        return self.item_head.vectors(items) if of_all is None else F.embedding(items, of_all)

    def _embed(self, codes: torch.Tensor, vectors: torch.Tensor | None) -> torch.Tensor:
        """Tokens of items ``[B, T, L, H]``; an item's vector, of ``[B, T, R * d]``, enters last."""
        tokens = self.code_embedding.embed(codes)
        if self.item_head is None or self.item_head.enter is None:
            return tokens
        last = tokens[:, :, -1:] + self.item_head.entry(vectors).unsqueeze(2)
        return torch.cat([tokens[:, :, :-1], last], dim=2)

    def _run_with(
        self, branches: Branches, embeddings: torch.Tensor, first: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run sequences and branches of theirs as one row of tokens each.

        A token of a branch sees the beginning that it follows and the branch's own tokens before
        it; prefixes that branches share are run once.

        Args:
            embeddings: of the tokens of sequences ``[B, S, H]``.
            first: tokens that stand before the sequences' codes.

        Returns:
            States of these tokens ``[B, S, H]``, and the log-probabilities of the branches' codes
            ``[B, K, L]``.
        """
        rows, own = embeddings.shape[:2]
        tree = PrefixTree(branches.codes, self.code_embedding.code_num)
        place = torch.arange(own, device=embeddings.device)
        begins = first + branches.after.unsqueeze(1) * branches.codes.shape[-1]  # tokens [B, 1]
        causal = (place.unsqueeze(1) >= place).expand(rows, -1, -1)
        if not tree.levels:
            hidden, further = self._run(embeddings), None
        else:
            tokens = tree.embed(self.code_embedding)
            count = tokens.shape[1]
            before = (place < begins).unsqueeze(1).expand(-1, count, -1)
            sees = torch.cat(
                [
                    torch.cat([causal, causal.new_zeros(rows, own, count)], dim=2),
                    torch.cat([before, tree.sees()], dim=2),
                ],
                dim=1,
            )
            positions = torch.cat([place.expand(rows, -1), begins + tree.depth], dim=1)
            both = torch.cat([embeddings, tokens], dim=1)
            both = self.dropout(self._masked_states(self.dropout(both), sees, positions))
            hidden, further = both.split([own, count], dim=1)
            further = further.float()
        state = hidden[torch.arange(rows, device=place.device), begins.squeeze(1) - 1].float()
        return hidden, tree.log_probs(self.code_embedding, state, further)

    def _masked_states(
        self, embeddings: torch.Tensor, sees: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """States of tokens ``[B, S, H]``, of which each sees what a mask ``[B, S, S]`` says."""
        with masked_attention(self.backbone):
            output = self.backbone(
                inputs_embeds=embeddings.to(self.residual_dtype),
                attention_mask=additive_mask(sees.unsqueeze(1), self.residual_dtype),
                position_ids=positions,
                **cached(self.backbone, None),
            )
        return output.last_hidden_state

    def _run(self, embeddings: torch.Tensor, cache: DynamicCache | None = None) -> torch.Tensor:
        """As :meth:`_causal_states`, with dropout before and after."""
        return self.dropout(self._causal_states(self.dropout(embeddings), cache))

    def _causal_states(
        self, embeddings: torch.Tensor, cache: DynamicCache | None = None
    ) -> torch.Tensor:
        """States of tokens ``[B, S, H]``, of which each sees those before it."""
        inputs = embeddings.to(self.residual_dtype)
        with causal_attention(self.backbone):
            output = self.backbone(inputs_embeds=inputs, **cached(self.backbone, cache))
        return output.last_hidden_state

    def _states_of_rows(
        self, embeddings: torch.Tensor, positions: torch.Tensor | None
    ) -> torch.Tensor:
        """States ``[B, S, H]`` of rows that each see themselves alone, see :class:`MixedRows`."""
        if positions is None:
            return self._causal_states(embeddings)
        row = (positions == 0).cumsum(dim=1)
        sees = (row.unsqueeze(2) == row.unsqueeze(1)).tril()
        return self._masked_states(embeddings, sees, positions)


def _mean_states(hidden: torch.Tensor, code_length: int) -> torch.Tensor:
    """Mean state of the history up to each item but the last: ``[B * (T - 1), H]``."""
    total = hidden.float().cumsum(dim=1)[:, code_length - 1 :: code_length]
    items = torch.arange(1, total.shape[1] + 1, device=hidden.device)
    return (total / (items * code_length).unsqueeze(-1)).flatten(0, 1)


def _rms(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.square().mean().sqrt()


def _adapter(width_in: int, width_out: int, init_std: float) -> nn.Sequential:
    layers = nn.Sequential(nn.Linear(width_in, width_in), nn.ReLU(), nn.Linear(width_in, width_out))
    for linear in (layers[0], layers[2]):
        nn.init.normal_(linear.weight, std=init_std)
        nn.init.zeros_(linear.bias)
    return layers
