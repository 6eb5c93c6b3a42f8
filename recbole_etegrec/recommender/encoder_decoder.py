"""The recommender of the published systems: an encoder reads the history, a decoder says the item.

The decoder's tokens are ``[start c0 c1 c2]``: code ``j`` of the target is predicted from the token
before it, as in the decoder-only recommender, and ``start`` predicts the first. An encoder reads
its whole input at once, so that each target needs a row of its own, which ends before it.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import EncoderDecoderCache, PreTrainedModel

from recbole_etegrec.recommender.backbone import cached, new_cache
from recbole_etegrec.recommender.code_embedding import CodeEmbedding
from recbole_etegrec.recommender.recommender import Recommender
from recbole_etegrec.recommender.structures import EncodedHistory, RecommenderOutput


class DecoderTokens(nn.Module):
    """What the decoder's tokens have beside codes: a first one, and distances from each other.

    A distance adds a number to the attention of each head, as T5's relative positions do; it is
    counted along a path of the tree of codes, so that branches may stand side by side.

    Args:
        hidden_size: width of a token ``H``.
        num_heads: attention heads ``h``.
        tokens: of a path at most ``L``.
    """

    def __init__(self, hidden_size: int, num_heads: int, tokens: int):
        super().__init__()
        self.start = nn.Parameter(torch.randn(hidden_size))
        self.distance_bias = nn.Parameter(torch.randn(tokens, num_heads) * hidden_size**-0.5)

    def mask(self, sees: torch.Tensor) -> torch.Tensor:
        """What to add to attention ``[B, h, n, keys]``.

        Args:
            sees: which keys each token attends to, its ancestors in order and itself
                ``[B, n, keys]``.
        """
        distance = sees.flip(-1).cumsum(-1).flip(-1) - 1  # of those seen, how many come after it
        bias = F.embedding(distance.clamp_min(0), self.distance_bias).permute(0, 3, 1, 2)
        return bias.masked_fill(~sees.unsqueeze(1), torch.finfo(bias.dtype).min)


class EncoderDecoder(Recommender):
    """Backbone of two sides, tied code embedding, and the adapters of the alignment losses.

    Source: ETEGRec (SIGIR 2025), section 3.1. SIA reads the mean of the encoder's states, PSA the
    state of the decoder's first token. Departure: codes enter and leave by the tokenizer's
    codebooks, as in :class:`Recommender`, and not by tables of the backbone's own.

    Args:
        backbone: an encoder and a decoder taking ``inputs_embeds`` ``[B, S, H]``.
        code_embedding: of the same ``H``.
        options: as of :class:`Recommender`.
    """

    def __init__(self, backbone: PreTrainedModel, code_embedding: CodeEmbedding, **options):
        super().__init__(backbone, code_embedding, **options)
        self.decoder_tokens = DecoderTokens(
            backbone.config.hidden_size,
            backbone.config.num_attention_heads,
            len(code_embedding.codebooks) + 1,
        )

    @property
    def heads(self) -> list[nn.Module]:
        """All but the backbone."""
        return [*super().heads, self.decoder_tokens]

    @property
    def sequence_parts(self) -> dict[str, nn.Module]:
        """What turns code vectors into states, by what it is called in reports."""
        return {
            "encoder, language model": self.backbone.encoder,
            "decoder, language model": self.backbone.decoder,
            "start and distances": self.decoder_tokens,
        }

    def forward(self, codes: torch.Tensor, target_index: torch.Tensor) -> RecommenderOutput:
        """Predict items of sequences, each from a row that is encoded for it alone.

        Args:
            codes: of the items of sequences, padded on the right, where no target's row reaches
                ``[B, T, L]``.
            target_index: flat index into ``[B, T - 1]`` of positions to predict from ``[n]``;
                position ``t`` predicts item ``t + 1``.
        """
        width, length = codes.shape[1] - 1, codes.shape[2]
        # With no target, one is predicted and left out: T5 takes no empty batch.
        index = target_index if len(target_index) else target_index.new_zeros(1)
        row, place = index // width, index % width
        position = torch.arange(width, device=codes.device)
        real = position <= place.unsqueeze(1)  # [n, T - 1]
        visible = real.repeat_interleave(length, dim=1)
        encoded = self._encode(codes[row, :-1], visible)
        target = self.code_embedding.embed(codes[row, place + 1, :-1])
        tokens = torch.cat([self._start(len(row)), target], dim=1)  # [n, L, H]
        causal = torch.ones(1, length, length, dtype=torch.bool, device=codes.device).tril()
        hidden = self._decode(tokens, causal, encoded, visible).float()
        share = visible / visible.sum(dim=1, keepdim=True).clamp_min(1)
        mean = (encoded.float() * share.unsqueeze(-1)).sum(dim=1)
        wanted = slice(len(target_index))
        return RecommenderOutput(
            self.code_embedding.logits(hidden)[wanted],
            self.enc_adapter(mean)[wanted],
            self.dec_adapter(hidden[:, 0])[wanted],
        )

    def encode_history(self, codes: torch.Tensor, real: torch.Tensor) -> EncodedHistory:
        """Run histories and the decoder's first token.

        The keys and values of a history are computed once, for all tokens that follow. An encoder
        sees what is on the right, too, so that padding there needs a mask.

        Args:
            codes: of their items, padded on the right ``[B, T, L]``.
            real: which of these are no padding, as booleans ``[B, T]``.
        """
        cache = EncoderDecoderCache(new_cache(), new_cache())
        visible = real.repeat_interleave(codes.shape[-1], dim=1)
        encoded = self._encode(codes, visible)
        itself = torch.ones(1, 1, 1, dtype=torch.bool, device=codes.device)
        state = self._decode(self._start(len(codes)), itself, encoded, visible, cache)
        return EncodedHistory(cache, visible, state[:, 0].float(), visible.sum(dim=1), encoded)

    def extend(
        self,
        history: EncodedHistory,
        embeddings: torch.Tensor,
        depth: torch.Tensor,
        sees: torch.Tensor,
    ) -> torch.Tensor:
        """Run further tokens after the same start, as nodes of a tree; see :class:`Recommender`."""
        sees = F.pad(sees, (1, 0), value=True)  # the start
        states = self._decode(embeddings, sees, history.encoded, history.visible, history.cache)
        return states.float()

    def _start(self, rows: int) -> torch.Tensor:
        return self.decoder_tokens.start.expand(rows, 1, -1)

    def _encode(self, codes: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """States ``[B, T * L, H]`` of the tokens of histories."""
        embeddings = self.dropout(self.code_embedding.embed(codes).flatten(1, 2))
        output = self.backbone.encoder(
            inputs_embeds=embeddings.to(self.residual_dtype), attention_mask=visible
        )
        return self.dropout(output.last_hidden_state)

    def _decode(
        self,
        tokens: torch.Tensor,
        sees: torch.Tensor,
        encoded: torch.Tensor,
        visible: torch.Tensor,
        cache: EncoderDecoderCache | None = None,
    ) -> torch.Tensor:
        """States of the decoder's tokens ``[B, n, H]``."""
        output = self.backbone.decoder(
            inputs_embeds=self.dropout(tokens).to(self.residual_dtype),
            attention_mask=self.decoder_tokens.mask(sees),
            encoder_hidden_states=encoded,
            encoder_attention_mask=visible,
            **cached(self.backbone.decoder, cache),
        )
        return self.dropout(output.last_hidden_state)
