"""What a loss is to the rest of the package: its function, and all that others ask about it."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from recbole_etegrec.data import SequenceBatch
from recbole_etegrec.recommender import Candidates, RecommenderOutput
from recbole_etegrec.tokenizer import Quantization, TokenizerOutput

_OTHERS = ("embeddings", "items", "sequence", "taught_codes", "row_codes")
OUTPUTS = {*RecommenderOutput._fields, *_OTHERS}


@dataclass(frozen=True)
class ForwardPass:
    """What the model has computed of a micro-batch; what no objective needs is None.

    Attributes:
        batch: the micro-batch.
        target_codes: codes of its targets ``[n, L]``.
        logits: of the targets' codes ``[n, L, C]``.
        sequence_latent: of the history before each target, in code space ``[n, d_c]``.
        preference_latent: of the same, in item embedding space ``[n, d_z]``.
        item_query: of the readers of the item head ``[R, n, d]``.
        item_vectors: of the items that `candidates` asks for ``[M, R * d]``.
        item_seen: distinct items of the history before each target, and 0 ``[n, T - 1]``; None:
            repeats are not learned.
        repeat_bonus: what the item head's scores of these get on top, in nats ``[1]``.
        candidates: the items that targets are told from.
        embeddings: of the distinct targets of the whole step ``[U, d_z]``.
        taught_vectors: of the items that a teacher scores for each target ``[n, K, R * d]``.
        taught_codes: codes of these items ``[n, K, L]``.
        row_logits: of the codes that rows of tasks ask for ``[n, L, C]``.
        row_codes: these codes ``[n, L]``.
        text_nll: ``-log p`` of the tokens of text that rows of tasks ask for ``[m]``.
        branch_log_probs: of the codes of the candidates in ``batch.group`` ``[B, K, L]``.
        items: the tokenizer's output for the distinct targets of the whole step ``[U, ...]``.
        sequence: ``sequence_latent``, quantized ``[n, ...]``.
        logsumexp_over_processes: combines ``[U]`` of this process with those of the others, which
            see other targets of the same step, with the gradient kept; None for one process.
    """

    batch: SequenceBatch
    target_codes: torch.Tensor
    logits: torch.Tensor | None = None
    sequence_latent: torch.Tensor | None = None
    preference_latent: torch.Tensor | None = None
    item_query: torch.Tensor | None = None
    item_vectors: torch.Tensor | None = None
    item_seen: torch.Tensor | None = None
    repeat_bonus: torch.Tensor | None = None
    candidates: Candidates | None = None
    embeddings: torch.Tensor | None = None
    taught_vectors: torch.Tensor | None = None
    taught_codes: torch.Tensor | None = None
    row_logits: torch.Tensor | None = None
    row_codes: torch.Tensor | None = None
    text_nll: torch.Tensor | None = None
    branch_log_probs: torch.Tensor | None = None
    items: TokenizerOutput | None = None
    sequence: Quantization | None = None
    logsumexp_over_processes: Callable[[torch.Tensor], torch.Tensor] | None = None

    def mean_over_targets(self, loss: torch.Tensor) -> torch.Tensor:
        """This micro-batch's share of the mean over targets of a loss ``[n]``."""
        real = self.batch.real_targets
        loss = loss if real is None else loss.masked_fill(~real, 0.0)
        return loss.sum() / self.batch.divisor

    def mean_over_items(self, loss: torch.Tensor) -> torch.Tensor:
        """This micro-batch's share of the mean over the step's distinct targets of ``[U]``."""
        real = self.batch.real_distinct
        if real is None:
            return loss.mean() / self.batch.micro_batches
        return loss.masked_fill(~real, 0.0).sum() / real.sum() / self.batch.micro_batches


@dataclass(frozen=True)
class Objective:
    """A loss that training can minimise.

    Attributes:
        loss: takes a :class:`ForwardPass`, and `options` by name; returns the micro-batch's share
            of the loss: shares sum to the mean over the step, or, where targets are summed over, to
            what the step adds to the mean over the epoch.
        needs: what it reads of the forward pass: outputs of the recommender by their names,
            `embeddings`, `items`, `sequence`, `taught_codes`, `row_codes`.
        trains: the modules, ``tokenizer`` or ``recommender``, in whose epochs it counts.
        title: what reports call it.
        unit: of its values.
        weight: the config key of its weight, the weight itself, or what finds it in a config.
        aligned: whether it ties the modules to each other: it then trains the tokenizer once the
            recommender has learnt by it, and after ``warm_epochs``.
        part: the config key of the part of the model without which it does not count.
        options: the config keys that its function takes.
        reaches: the kinds of parts of the model that must learn by it, as `--check` names them.

    Raises:
        ValueError: it needs what there is not.
    """

    loss: Callable[..., torch.Tensor]
    needs: Collection[str]
    trains: tuple[str, ...]
    title: str
    unit: str
    weight: str | float | Callable[[Mapping[str, Any]], float] = 1.0
    aligned: bool = False
    part: str | None = None
    options: tuple[str, ...] = ()
    reaches: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.needs) - OUTPUTS:
            raise ValueError(f"objective '{self.title}' needs {sorted(unknown)}: no such output")

    @property
    def reads_sequences(self) -> bool:
        """Whether it needs histories, and not items alone."""
        return set(self.needs) != {"items"}

    @property
    def reads_groups(self) -> bool:
        """Whether it needs candidates for targets, which a phase must draw for it."""
        return "branch_log_probs" in self.needs

    def weight_in(self, config: Mapping[str, Any]) -> float:
        """Its weight by a config; 0 where the config says nothing of it."""
        if self.part and not config[self.part]:
            return 0.0
        if callable(self.weight):
            return self.weight(config)
        weight = config[self.weight] if isinstance(self.weight, str) else self.weight
        return weight or 0.0
