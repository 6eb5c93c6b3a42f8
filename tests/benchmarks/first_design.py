"""The paths that the speed of this package is told against, on the same weights.

Training on a row a prefix, ranking by running the whole history again for every beam and step, and
the generation of transformers with a Python function that names the codes allowed.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from recbole_etegrec.data.loader import SequenceLoader
from recbole_etegrec.decoding import Ranking
from recbole_etegrec.recommender import Recommender
from recbole_etegrec.recommender.backbone import cached
from recbole_etegrec.tokenizer import ItemCodes, Trie


def prefix_loader(
    dataset, code_length: int, seed: int, bucketed: bool, rows: int = 512
) -> SequenceLoader:
    """Batches of a row a target, each padded to its longest row.

    Args:
        dataset: the training part.
        bucketed: whether rows of like length share a batch; else they are drawn at random.
        rows: of a batch.
    """
    loader = SequenceLoader(
        dataset,
        max_tokens=10**9,  # steps are one part, whatever their rows
        code_length=code_length,
        training_rows="prefixes",
        window_overlap=0.0,
        cut_probability=0.0,
        seed=seed,
    )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(loader.windows.start))
    if bucketed:
        lengths = loader.windows.end - loader.windows.start
        order = order[np.argsort(lengths[order], kind="stable")]
    steps = [order[i : i + rows] for i in range(0, len(order), rows)]
    loader.steps = [steps[i] for i in rng.permutation(len(steps))]
    loader.targets_a_step = len(order) / len(steps)
    return loader


@contextmanager
def padding_masked(recommender: Recommender, items: torch.Tensor) -> Iterator[None]:
    """Let a recommender read sequences with a mask of their padding, as LLaMA is usually given one.

    Args:
        items: of the sequences ``[B, T]``, padded with 0.
    """
    mask = _token_mask(items, len(recommender.code_embedding.tables()))
    recommender._run = lambda tokens: _run_masked(recommender, tokens, mask[:, : tokens.shape[1]])
    try:
        yield
    finally:
        del recommender._run


@torch.no_grad()
def generate_uncached(
    recommender: Recommender, codes: ItemCodes, items: torch.Tensor, num_beams: int
) -> Ranking:
    """Beam search without a cache: the whole history once a user for the first code, then once a
    beam for each further one.

    Beams are kept to the trie, which the first design did not do, for the results to be the same.

    Args:
        items: histories ``[B, T]``, padded with 0 on the left.
    """
    trie, rows = codes.trie, len(items)
    prefix = codes(items).flatten(1)  # [B, T * L]
    mask = _token_mask(items, trie.depth)
    user = torch.arange(rows, device=items.device).unsqueeze(1)
    nodes = prefix.new_zeros(rows, 1)
    scores = torch.zeros(rows, 1, device=items.device)
    for level in range(trie.depth):
        width = nodes.shape[1]
        log_probs = _last_log_probs(recommender, prefix, mask, level).view(rows, width, -1)
        children = trie.children(level, nodes)  # [B, K, W]
        grown = scores.unsqueeze(-1) + log_probs.gather(-1, children.codes)
        grown = grown.masked_fill(~children.exists, -torch.inf).flatten(1)
        keep = min(num_beams, trie.node_counts[level + 1], grown.shape[1])
        scores, best = grown.topk(keep, dim=-1)
        nodes = children.nodes.flatten(1).gather(1, best)
        code = children.codes.flatten(1).gather(1, best).view(-1, 1)
        parent = best // children.codes.shape[-1] + user * width
        prefix = torch.cat([prefix[parent.flatten()], code], dim=1)
        mask = torch.cat([mask[parent.flatten()], torch.ones_like(code, dtype=torch.bool)], dim=1)
    return Ranking(trie.items[nodes], scores)


def _last_log_probs(
    recommender: Recommender, tokens: torch.Tensor, mask: torch.Tensor, level: int
) -> torch.Tensor:
    """Of the codes of a level, after tokens ``[n, S]``: ``[n, C]``."""
    embedding = recommender.code_embedding
    levels = torch.arange(tokens.shape[1], device=tokens.device) % len(embedding.tables())
    rows = embedding.tables().flatten(0, 1)[tokens + levels * embedding.code_num]
    hidden = _run_masked(recommender, embedding.scid_projector(rows).float(), mask)
    logits = embedding.logits(hidden[:, -1:].float(), slice(level, level + 1))
    return logits[:, 0].log_softmax(dim=-1)


def _run_masked(
    recommender: Recommender, embeddings: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """States of tokens ``[n, S, H]``; a mask ``[n, S]`` says which are real, and sets positions."""
    output = recommender.backbone(
        inputs_embeds=recommender.dropout(embeddings).to(recommender.residual_dtype),
        attention_mask=mask.long(),
        position_ids=(mask.cumsum(1) - 1).clamp_min(0),
        **cached(recommender.backbone, None),
    )
    return recommender.dropout(output.last_hidden_state)


def _token_mask(items: torch.Tensor, code_length: int) -> torch.Tensor:
    """Which tokens are real ``[B, T * L]``, of items ``[B, T]`` padded with 0."""
    return (items > 0).repeat_interleave(code_length, dim=1)


class CodeLM(LlamaForCausalLM):
    """The recommender as a language model of transformers, for its own ``generate``.

    A token is a level's code, numbered ``level * C + code``. The codes of other levels than the
    next have a logit of -inf, so that the probabilities are the recommender's.
    """

    @classmethod
    @torch.no_grad()
    def of(cls, recommender: Recommender) -> "CodeLM":
        """The same weights, with the projectors multiplied into the tables at both ends."""
        backbone, embedding = recommender.backbone, recommender.code_embedding
        values = backbone.config.to_dict()
        tables = embedding.tables().flatten(0, 1)  # [L * C, D]
        model = cls(LlamaConfig(**{**values, "vocab_size": len(tables), "pad_token_id": 0}))
        model.config._attn_implementation = backbone.config._attn_implementation
        model.model.load_state_dict(backbone.state_dict(), strict=False)
        model.model.embed_tokens.weight.copy_(embedding.scid_projector(tables))
        model.lm_head.weight.copy_(tables @ embedding.output_projector.weight)
        model.code_length, model.code_num = embedding.codebooks.shape[0] + 1, embedding.code_num
        return model.eval()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: DynamicCache | None = None,
        past_key_values: DynamicCache | None = None,  # the cache's name until transformers 5.24
        **_,
    ) -> CausalLMOutputWithPast:
        """Logits of the token after the last ``[n, 1, L * C]``; ``generate`` gives the cache."""
        cache = past_key_values if cache is None else cache
        level = (cache.get_seq_length() + input_ids.shape[1]) % self.code_length
        state = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **cached(self.model, cache),
        ).last_hidden_state[:, -1:]
        own = slice(level * self.code_num, (level + 1) * self.code_num)
        logits = state.new_full((*state.shape[:2], self.config.vocab_size), -torch.inf)
        logits[..., own] = state @ self.lm_head.weight[own].T
        return CausalLMOutputWithPast(logits=logits)


class AllowedTokens:
    """What ``prefix_allowed_tokens_fn`` is: the tokens that may follow, from a dict of prefixes."""

    def __init__(self, trie: Trie, code_num: int):
        self.depth = trie.depth
        self.after, self.item_of = defaultdict(list), {}
        offsets = torch.arange(trie.depth) * code_num
        for tokens, item in zip((trie.codes + offsets).tolist(), trie.items.tolist(), strict=True):
            for level, token in enumerate(tokens):
                known = self.after[tuple(tokens[:level])]
                if not known or known[-1] != token:  # they come sorted
                    known.append(token)
            self.item_of[tuple(tokens)] = item

    def __call__(self, _row: int, tokens: torch.Tensor) -> list[int]:
        return self.after[tuple(tokens[len(tokens) - len(tokens) % self.depth :].tolist())]


@torch.no_grad()
def generate_transformers(
    model: CodeLM, allowed: AllowedTokens, codes: ItemCodes, items: torch.Tensor, num_beams: int
) -> Ranking:
    """Beam search by transformers; histories as in :func:`generate_uncached`."""
    offsets = torch.arange(allowed.depth) * model.code_num
    output = model.generate(
        (codes(items) + offsets).flatten(1),
        attention_mask=_token_mask(items, allowed.depth).long(),
        prefix_allowed_tokens_fn=allowed,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=allowed.depth,
        length_penalty=0.0,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    tokens = output.sequences[:, -allowed.depth :].tolist()
    ranked = torch.tensor([allowed.item_of[tuple(row)] for row in tokens])
    shape = (len(items), num_beams)
    return Ranking(ranked.view(shape), output.sequences_scores.view(shape))


def left_padded(items: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Histories ``[B, T]`` padded on the left, no longer than the longest."""
    place = torch.arange(int(length.max()), device=items.device)
    shift = place - (length.max() - length).unsqueeze(1)  # [B, T]
    return items.gather(1, shift.clamp_min(0)) * (shift >= 0)
