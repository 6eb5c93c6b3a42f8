"""Candidates for targets: the beams of the present model, and which of them are preferred."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from recbole_etegrec.config import Config
from recbole_etegrec.data import Group, SequenceBatch
from recbole_etegrec.data.seen_items import HistoryIndex
from recbole_etegrec.decoding import beam_search, encode_batch, score_codes
from recbole_etegrec.decoding.sampling import TrieSampler, row_seeds
from recbole_etegrec.model import ETEGRecLlama
from recbole_etegrec.preference.reference import Reference
from recbole_etegrec.preference.rewards import REWARDS, Proposed
from recbole_etegrec.preference.signals import Signals
from recbole_etegrec.recommender import EncodedHistory, autocast

_SAME = 1e-6  # rewards of a group that deviate by less tell nothing


class Judged(NamedTuple):
    """What is preferred among candidates.

    Attributes:
        advantages: see :class:`recbole_etegrec.data.Group` ``[B, K]``.
        alive: which groups have something to teach ``[B]``.
    """

    advantages: torch.Tensor
    alive: torch.Tensor


class Targets(NamedTuple):
    """The last target of each row of a micro-batch, and what comes before it.

    Attributes:
        history: ids, padded with 0 on the right ``[B, T]``.
        after: items of it, 1 at least ``[B]``.
        target: ids ``[B]``.
        real: which rows have one ``[B]``.
    """

    history: torch.Tensor
    after: torch.Tensor
    target: torch.Tensor
    real: torch.Tensor


def by_reward(proposed: Proposed, config: Config, _share: float) -> Judged:
    """GRPO: ``(r - mean) / (deviation + 1e-4)`` of a reward in its group."""
    there = proposed.items > 0
    count = there.sum(dim=1, keepdim=True).clamp_min(1)
    rewards = REWARDS[config["preference_reward"]](proposed).float().masked_fill(~there, 0.0)
    excess = (rewards - rewards.sum(dim=1, keepdim=True) / count).masked_fill(~there, 0.0)
    deviation = (excess.square().sum(dim=1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
    return Judged(excess / (deviation + 1e-4), deviation.squeeze(1) > _SAME)


def by_shared_codes(proposed: Proposed, config: Config, share: float) -> Judged:
    """DPO: the target, and those of the others that share as many codes with it as is due (SP-DPO).

    That is none in the beginning and ``preference_hardest`` in the end. Of candidates that come
    equally near to it the more probable are taken, ``preference_negatives`` in all. What the user
    has rated low comes before them all (RF-DPO).
    """
    hardest, most = config["preference_hardest"], config["preference_negatives"]
    due = min(int(share * (hardest + 1)), hardest)
    count, hits, shared = proposed.items.shape[1], proposed.hits, proposed.shared
    can = (proposed.items > 0) & ~hits & ((shared <= hardest) | proposed.disliked)
    place = torch.arange(count, device=shared.device)
    far = ((shared - due).abs() * count + place).masked_fill(proposed.disliked, -1)
    far = far.masked_fill(~can, torch.iinfo(far.dtype).max)
    rank = far.argsort(dim=1, stable=True).argsort(dim=1)
    negative = can & (rank < most)
    return Judged(hits.float() - negative.float(), hits.any(dim=1) & negative.any(dim=1))


# What is preferred, by the objective that learns it. `likelihood` is the same phase without.
PREFERENCES: dict[str, Callable[[Proposed, Config, float], Judged] | None] = {
    "grpo": by_reward,
    "dpo": by_shared_codes,
    "likelihood": None,
}


class GroupMaker:
    """Draws candidates for the targets of micro-batches, with the model as it is.

    Args:
        config: of the run.
        model: ranks without dropout meanwhile.
        reference: the model of before.
    """

    def __init__(self, config: Config, model: ETEGRecLlama, reference: Reference):
        self.config, self.model, self.reference = config, model, reference
        self.judge = PREFERENCES[config["preference"]]
        # A target that is not among candidates would leave DPO nothing to prefer.
        self.puts_in = config["preference_target"] or config["preference"] == "dpo"
        self.excludes = bool(config["exclude_history"])

    @torch.no_grad()
    def __call__(
        self, batch: SequenceBatch, share: float, seed: int, signals: Signals | None = None
    ) -> SequenceBatch:
        """A micro-batch on the model's device, with its group.

        Args:
            share: of the phase that is over, in [0, 1).
            seed: of the step; what is drawn for a row follows from it and the row alone.
            signals: what is seen of the group is added to them.
        """
        batch = batch.to(self.model.device)
        targets = last_targets(batch)
        if batch.disliked is not None:  # what is not wanted is preferred to nothing
            unwanted = (batch.disliked == targets.target.unsqueeze(1)).any(dim=1)
            targets = targets._replace(real=targets.real & ~unwanted)
        model, config = self.model, self.config
        training = model.recommender.training
        model.recommender.eval()
        with autocast(config["precision"], model.device.type):
            history = self._encode(targets)
            proposed = self._propose(history, targets, batch.disliked, seed)
            with self.reference.in_place():
                reference = self._log_probs(self._encode(targets), proposed.codes)
        model.recommender.train(training)
        advantages, alive = self.judge(proposed, config, share)
        there = (proposed.items > 0) & targets.real.unsqueeze(1)
        if signals is not None:
            signals.add(proposed.log_probs, reference, there, alive, proposed.found)
        group = Group(
            proposed.items,
            targets.after,
            advantages,
            reference,
            targets.real,
            batch.rows_a_step or len(batch.items),
        )
        return batch._replace(group=group)

    def _encode(self, targets: Targets) -> EncodedHistory:
        fields = self.model.fields
        batch = {fields.history: targets.history, fields.length: targets.after}
        return encode_batch(self.model.recommender, self.model.codes, fields, batch)

    def _propose(
        self,
        history: EncodedHistory,
        targets: Targets,
        disliked: torch.Tensor | None,
        seed: int,
    ) -> Proposed:
        model, temperature = self.model, self.config["preference_temperature"]
        sampler = None
        if temperature:
            sampler = TrieSampler(temperature, row_seeds(targets.history, seed))
        excluded = _seen(targets) if self.excludes else None
        items = beam_search(
            model.recommender,
            model.codes.trie,
            history,
            self.config["preference_group"],
            excluded,
            sampler,
        ).items
        history.cache.crop(history.visible.shape[1] - history.cache.get_seq_length())
        found = (items == targets.target.unsqueeze(1)).any(dim=1)
        if self.puts_in:
            items[:, -1] = torch.where(found, items[:, -1], targets.target)
        beams = items.shape[1]
        if disliked is not None:
            items = torch.cat([items, disliked], dim=1)
        codes = model.codes(items)
        return Proposed(
            items,
            codes,
            self._log_probs(history, codes),
            targets.target,
            model.codes(targets.target),
            found,
            (torch.arange(items.shape[1], device=items.device) >= beams).expand_as(items),
            lambda: self._head(history, items),
        )

    def _log_probs(self, history: EncodedHistory, codes: torch.Tensor) -> torch.Tensor:
        return score_codes(self.model.recommender, history, codes)

    def _head(self, history: EncodedHistory, items: torch.Tensor) -> torch.Tensor:
        head = self.model.recommender.item_head
        return head.log_probs(history.query, history.items, history.taste).gather(1, items)


def last_targets(batch: SequenceBatch) -> Targets:
    """The last target of each row of a micro-batch."""
    rows, width = batch.items.shape[0], batch.items.shape[1] - 1
    row, place = batch.target_index // width, batch.target_index % width
    last = torch.full((rows,), -1, device=row.device)
    last = last.scatter_reduce(0, row, place, "amax")
    real, after = last >= 0, last.clamp_min(0) + 1
    kept = torch.arange(width + 1, device=row.device) < after.unsqueeze(1)
    target = batch.items.gather(1, after.unsqueeze(1)).squeeze(1)
    return Targets(batch.items * kept, after, target, real)


def _seen(targets: Targets) -> HistoryIndex:
    """Distinct pairs of row and item of a history, without the row's target."""
    rows, places = targets.history.nonzero(as_tuple=True)
    pairs = torch.stack([rows, targets.history[rows, places]], dim=1).unique(dim=0)
    rows, items = pairs.unbind(dim=1)
    other = items != targets.target[rows]
    return rows[other], items[other]
