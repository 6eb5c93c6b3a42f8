"""Losses: plain functions of tensors, and the table of the objectives made of them.

To add one: a file with an :class:`Objective`, a line in ``OBJECTIVES``, and the key of its weight
in ``properties/model/ETEGRecLlama.yaml``.
"""

from collections.abc import Mapping
from typing import Any

from recbole_etegrec.losses.distillation import CODE_DISTILLATION, DISTILLATION
from recbole_etegrec.losses.item import ITEM, item_loss
from recbole_etegrec.losses.objective import ForwardPass, Objective
from recbole_etegrec.losses.preference import DPO, GRPO
from recbole_etegrec.losses.psa import PSA, PSA_FIXED, preference_semantic_alignment
from recbole_etegrec.losses.quantization import QUANTIZATION, quantization_loss
from recbole_etegrec.losses.recommendation import RECOMMENDATION, recommendation_loss
from recbole_etegrec.losses.sia import SIA, sequence_item_alignment
from recbole_etegrec.losses.tasks import TASK_OBJECTIVES

# The order is that in which weighted losses are summed, recorded and shown.
OBJECTIVES: dict[str, Objective] = {
    "recommendation": RECOMMENDATION,
    "item": ITEM,
    "distillation": DISTILLATION,
    "code_distillation": CODE_DISTILLATION,
    "sia": SIA,
    "psa": PSA,
    "psa_fixed": PSA_FIXED,
    "quantization": QUANTIZATION,
    "grpo": GRPO,
    "dpo": DPO,
    **TASK_OBJECTIVES,
}


def objective_weights(
    config: Mapping[str, Any], module: str, *, aligned: bool = True, sequences: bool = True
) -> dict[str, float]:
    """The weights of the objectives that count while a module trains, by name.

    Args:
        config: has the keys that the objectives name.
        module: ``tokenizer`` or ``recommender``.
        aligned: whether objectives that tie the modules to each other count.
        sequences: whether there are histories to read, and not items alone.

    Those that read groups of candidates have a phase of their own, which names one of them.
    """
    return {
        name: objective.weight_in(config)
        for name, objective in OBJECTIVES.items()
        if module in objective.trains
        and not objective.reads_groups
        and (aligned or not objective.aligned)
        and (sequences or not objective.reads_sequences)
        and objective.weight_in(config)
    }


__all__ = [
    "OBJECTIVES",
    "ForwardPass",
    "Objective",
    "item_loss",
    "objective_weights",
    "preference_semantic_alignment",
    "quantization_loss",
    "recommendation_loss",
    "sequence_item_alignment",
]
