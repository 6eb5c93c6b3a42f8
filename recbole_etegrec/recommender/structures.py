"""The tensors that a recommender takes and gives, by their names."""

from typing import NamedTuple

import torch
from transformers import DynamicCache, EncoderDecoderCache

from recbole_etegrec.recommender.backbone import part_of_cache


class RecommenderOutput(NamedTuple):
    """For each of ``n`` supervised positions.

    Attributes:
        logits: of the target's codes, teacher-forced ``[n, L, C]``.
        sequence_latent: for SIA, in code space ``[n, d_c]``.
        preference_latent: for PSA, in item embedding space ``[n, d_z]``.
        item_query: of the readers of the item head ``[R, n, d]``; it and the next where candidates
            are given.
        item_vectors: of the items that the candidates ask for ``[M, R * d]``.
        item_seen: distinct items of the history, and 0 ``[n, T - 1]``; it and the next where the
            item head learns of repeats.
        repeat_bonus: what the scores of these items get on top, in nats ``[1]``.
        taught_vectors: of items that a teacher scores for each target ``[n, K, R * d]``.
        row_logits: of the codes that rows of texts and codes ask for ``[n, L, C]``; it and the next
            where there are such rows.
        text_nll: ``-log p`` of the tokens of text that they ask for, in nats ``[m]``; None where
            there is no head for texts.
        branch_log_probs: of the codes of branches, in nats ``[B, K, L]``; where there are any.
    """

    logits: torch.Tensor
    sequence_latent: torch.Tensor
    preference_latent: torch.Tensor
    item_query: torch.Tensor | None = None
    item_vectors: torch.Tensor | None = None
    item_seen: torch.Tensor | None = None
    repeat_bonus: torch.Tensor | None = None
    taught_vectors: torch.Tensor | None = None
    row_logits: torch.Tensor | None = None
    text_nll: torch.Tensor | None = None
    branch_log_probs: torch.Tensor | None = None


class MixedRows(NamedTuple):
    """Rows of mixed tokens; what is asked for is predicted from the token before it.

    Mixed tokens are codes as `CodeEmbedding.embed_tokens` numbers them, and tokens of text after
    them. Indices are flat, into ``[B, S]``.

    Attributes:
        tokens: ``[B, S]``.
        positions: of each in its own row; where one is 0 a row begins ``[B, S]``. None: each row
            has one sequence, padded on the right.
        item_index: the tokens that are the last codes of items ``[k]``.
        items: ids of these items ``[k]``.
        code_index: the tokens of codes of items that are asked for ``[n, L]``.
        text_index: the tokens of text that are asked for ``[m]``.
    """

    tokens: torch.Tensor
    positions: torch.Tensor | None
    item_index: torch.Tensor
    items: torch.Tensor
    code_index: torch.Tensor
    text_index: torch.Tensor


class Branches(NamedTuple):
    """Items that might follow a beginning of each sequence.

    Attributes:
        codes: of ``K`` items a sequence ``[B, K, L]``.
        after: items of the beginning, 1 at least ``[B]``.
    """

    codes: torch.Tensor
    after: torch.Tensor


class EncodedHistory(NamedTuple):
    """Histories run through the backbone once.

    Attributes:
        cache: keys and values of their tokens.
        visible: which of their tokens are real, what stands before them included
            ``[B, P + T * L]``.
        state: the state that predicts the first code after each ``[B, H]``.
        length: tokens of each history ``[B]``.
        encoded: states of their tokens ``[B, T * L, H]``, where there is an encoder.
        items: ids of their items, padded with 0 ``[B, T]``; None where nobody asks for them.
        query: of the item head ``[B, R * d]``, where there is one.
        taste: what they are of ``[B, d]``, where an item head needs it.
    """

    cache: DynamicCache | EncoderDecoderCache
    visible: torch.Tensor
    state: torch.Tensor
    length: torch.Tensor
    encoded: torch.Tensor | None = None
    items: torch.Tensor | None = None
    query: torch.Tensor | None = None
    taste: torch.Tensor | None = None

    def part(self, rows: slice) -> "EncodedHistory":
        """Some of the histories, with a cache of their own."""
        others = (None if one is None else one[rows] for one in self[1:])
        return EncodedHistory(part_of_cache(self.cache, rows), *others)
