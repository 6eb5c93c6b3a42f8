"""The recommender's optimizer, and the course of learning rates."""

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from recbole_etegrec.recommender import Recommender
from recbole_etegrec.trainer.row_adamw import RowAdamW


def make_optimizer(
    kind: str, recommender: Recommender, weight_decay: float, on_gpu: bool = False
) -> torch.optim.Optimizer:
    """An optimizer of what learns: weight decay on matrices, none on norms, biases, code tables.

    Args:
        kind: ``adamw``, or ``adamw_8bit`` or ``paged_adamw_8bit`` of bitsandbytes.
        on_gpu: whether ``adamw`` may move all parameters by one kernel.

    Returns:
        One with groups of which each belongs to the backbone or, by its entry ``heads``, not.
    """
    groups: dict[tuple[bool, bool, bool], list] = {}
    head = recommender.item_head
    large = head.free if head is not None and head.by_rows else None
    for name, parameter in recommender.named_parameters():
        if parameter.requires_grad:
            table = any(part in name for part in ("codebooks", "collision_table", "user_table"))
            decays = parameter.ndim >= 2 and not table
            heads = not name.startswith(("backbone.", "text."))
            groups.setdefault((heads, decays, parameter is large), []).append(parameter)
    options = [
        {"params": parameters, "weight_decay": weight_decay * decays, "heads": heads}
        | ({"by_rows": True} if by_rows else {})
        for (heads, decays, by_rows), parameters in groups.items()
    ]
    if kind == "adamw":
        optimizer = torch.optim.AdamW if large is None else RowAdamW
        return optimizer(options, fused=on_gpu or None)
    from bitsandbytes import optim  # an optional dependency

    return {"adamw_8bit": optim.AdamW8bit, "paged_adamw_8bit": optim.PagedAdamW8bit}[kind](options)


def make_scheduler(
    course: str, optimizer: torch.optim.Optimizer, warmup: int, steps: int, last: int = -1
) -> LambdaLR:
    """The learning rate's course over the steps of a module in a phase.

    Args:
        course: ``constant`` or ``cosine``, after the warm-up.
        warmup: steps of it.
        steps: in all.
        last: the last step that has been made, or -1.
    """
    if course == "cosine":
        return get_cosine_schedule_with_warmup(optimizer, warmup, steps, last_epoch=last)
    return get_constant_schedule_with_warmup(optimizer, warmup, last_epoch=last)
