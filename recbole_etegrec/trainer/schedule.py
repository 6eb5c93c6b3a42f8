"""The order of training, as data.

Source: ETEGRec (SIGIR 2025), section 3.4. A :class:`Stage` is one epoch: what trains, with which
loss weights, and what follows. The trainer runs stages and knows nothing of their order.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar


@dataclass(frozen=True)
class Stage:
    """One epoch.

    Attributes:
        phase: ``alternation`` or ``finetune``.
        trains: the module that learns, ``tokenizer`` or ``recommender``, the other being fixed; or
            ``both``.
        recommendation: weight of ``L_REC``.
        sia: weight ``mu`` of sequence-item alignment.
        psa: weight ``lambda`` of preference-semantic alignment.
        quantization: weight of ``L_SQ``.
        rebuild_codes: whether items get new codes after it.
        evaluate: whether the validation metric is measured after it.
    """

    LOSSES: ClassVar = ("recommendation", "sia", "psa", "quantization")

    phase: str
    trains: str
    recommendation: float = 0.0
    sia: float = 0.0
    psa: float = 0.0
    quantization: float = 0.0
    rebuild_codes: bool = False
    evaluate: bool = False

    @property
    def weights(self) -> dict[str, float]:
        """The losses that count, by name."""
        return {name: getattr(self, name) for name in self.LOSSES if getattr(self, name)}

    @property
    def parts(self) -> tuple["Stage", ...]:
        """What each step consists of, one part for each module that learns."""
        if self.trains != "both":
            return (self,)
        tokenizer = replace(self, trains="tokenizer", recommendation=0.0)
        return tokenizer, replace(self, trains="recommender", quantization=0.0)

    @property
    def shares_codebooks(self) -> bool:
        """Whether codebooks moved by the recommender go back to the tokenizer.

        Not in the final stage: there the codes are settled, and the tokenizer's own codebooks
        must go on giving them.
        """
        return self.phase == "alternation" and self.trains == "recommender"


def alternation(
    *,
    epochs: int,
    cycle_epochs: int,
    warm_epochs: int,
    sia_weight: float,
    psa_weight: float,
    joint: bool = False,
) -> Iterator[Stage]:
    """Cycles of a tokenizer epoch, new codes, then recommender epochs.

    The tokenizer minimises ``L_SQ + mu SIA + lambda PSA``, the recommender
    ``L_REC + mu SIA + lambda PSA``. Metrics are taken at the end of a cycle, when the recommender
    has caught up with the new codes.

    Args:
        epochs: in all.
        cycle_epochs: a cycle; the first is the tokenizer's.
        warm_epochs: before the alignment losses start.
        joint: no turns are taken: of a cycle's epochs the first, the tokenizer's, is left out, and
            both modules learn in each step of the next.
    """
    for epoch in range(epochs):
        position = epoch % cycle_epochs
        aligned = epoch >= warm_epochs
        sia, psa = (sia_weight, psa_weight) if aligned else (0.0, 0.0)
        last = position == cycle_epochs - 1 or epoch == epochs - 1
        if position == 0 and cycle_epochs > 1:
            if not joint:
                yield Stage("alternation", "tokenizer", 0.0, sia, psa, 1.0, rebuild_codes=True)
        elif position == 1 and joint:
            yield Stage(
                "alternation", "both", 1.0, sia, psa, 1.0, rebuild_codes=True, evaluate=last
            )
        else:
            yield Stage("alternation", "recommender", 1.0, sia, psa, evaluate=last)


def finetuning(*, epochs: int, eval_step: int) -> Iterator[Stage]:
    """The recommender alone, on ``L_REC`` and the final codes."""
    for epoch in range(1, epochs + 1):
        evaluate = epoch % eval_step == 0 or epoch == epochs
        yield Stage("finetune", "recommender", 1.0, evaluate=evaluate)
