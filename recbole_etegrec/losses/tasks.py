"""Losses of the tasks of texts: one objective a task of `TASKS`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from recbole_etegrec.data.tasks import TASKS, Task, tasks_of
from recbole_etegrec.losses.objective import ForwardPass, Objective
from recbole_etegrec.losses.recommendation import recommendation_loss

_BY_ALL = ("codebooks, recommender's", "input projector", "backbone", "token table")


def _loss_of(name: str, task: Task) -> Callable[..., torch.Tensor]:
    """Its mean cross-entropy, over codes or over tokens of text, as a share of the epoch's."""

    def loss(forward: ForwardPass, tasks: Mapping[str, float]) -> torch.Tensor:
        number, rows = tasks_of({"tasks": tasks}).index(name), forward.batch.tasks
        if task.target == "codes":
            each, own = recommendation_loss(forward.row_logits, forward.row_codes), rows.code_task
        else:
            each, own = forward.text_nll, rows.text_task
        return (each * (own == number)).sum() / rows.a_step[number]

    return loss


def _weight_of(name: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda config: (config["tasks"] or {}).get(name, 0.0)


def task_objective(name: str, task: Task) -> Objective:
    """The objective of a task; what it asks for of an epoch weighs the same, in whatever step."""
    codes = task.target == "codes"
    return Objective(
        _loss_of(name, task),
        needs={"row_logits", "row_codes"} if codes else {"text_nll"},
        trains=("recommender",),
        title=task.says,
        unit="nats a code" if codes else "nats a token",
        weight=_weight_of(name),
        part="tasks",
        options=("tasks",),
        reaches=(*_BY_ALL, "output projector", "collision table") if codes else _BY_ALL,
    )


TASK_OBJECTIVES = {name: task_objective(name, task) for name, task in TASKS.items()}
