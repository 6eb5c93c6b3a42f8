"""How much of a module's gradient each objective has: what the weights of objectives are found by.

A weight says little by itself, for losses differ in scale and in what they reach. So once an epoch
the gradients of its objectives are taken one by one on one step, nothing being moved by them.
"""

import logging

from torch.distributed.fsdp import FSDPModule

from recbole_etegrec.data import SequenceBatch
from recbole_etegrec.losses import OBJECTIVES
from recbole_etegrec.trainer.engine import Engine
from recbole_etegrec.trainer.schedule import Stage

logger = logging.getLogger(__name__)

_GROUPS = ("encoder", "decoder", "codebooks", "backbone", "lora")


def gradient_shares(
    engine: Engine, micro_batches: list[SequenceBatch], stage: Stage
) -> dict[str, float]:
    """The norm of each weighted objective's gradient beside that of the module's own loss.

    Own are the losses that have no key of their weight: ``quantization``, ``recommendation``.

    Args:
        micro_batches: of one step; every process takes part.

    Returns:
        By ``share_<objective>_<group>``, for each group of parameters that the own loss reaches;
        nothing where there is only one objective, or shards, of which none has a whole gradient.
    """
    found: dict[str, float] = {}
    if isinstance(engine.recommender, FSDPModule):
        return found
    for part in stage.parts:
        own = next((n for n in part.weights if not isinstance(OBJECTIVES[n].weight, str)), None)
        others = [name for name in part.weights if name != own]
        if own is None or not others:
            continue
        engine.freeze_all_but(part.trains)
        beside = engine.norms_of(own, micro_batches, part)
        texts = []
        for name in others:
            norms = engine.norms_of(name, micro_batches, part)
            shares = {
                group: norms[group] / beside[group] for group in _GROUPS if beside.get(group, 0) > 0
            }
            found |= {f"share_{name}_{group}": share for group, share in shares.items()}
            listed = ", ".join(f"{share:.2%} on {group}" for group, share in shares.items())
            texts.append(f"{name} {listed}")
        logger.info("gradients beside that of %s: %s", own, "; ".join(texts))
    return found
