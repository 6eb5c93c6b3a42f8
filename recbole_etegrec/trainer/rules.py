"""What the keys of training must be together: schedule, optimizer, precision."""

from collections.abc import Iterator
from importlib.util import find_spec

from recbole_etegrec.config import Config
from recbole_etegrec.config.checks import launched_with
from recbole_etegrec.data.tasks import tasks_of
from recbole_etegrec.errors import nearest
from recbole_etegrec.trainer.schedule import SCHEDULES

FAST = 0.001  # a learning rate above which pretrained weights are lost


def rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Pairs (whether it is broken, message), one for each rule."""
    yield from _schedule_rules(config)
    optimizer, tuning = config["optimizer"], config["tuning"]
    yield (
        optimizer != "adamw" and find_spec("bitsandbytes") is None,
        f"optimizer ({optimizer}) needs the package bitsandbytes: pip install bitsandbytes",
    )
    yield (
        optimizer == "paged_adamw_8bit" and config["device"].type != "cuda",
        "optimizer (paged_adamw_8bit) moves states between GPU and CPU: it needs a GPU",
    )
    yield (
        launched_with("FSDP") and (tuning == "qlora" or optimizer != "adamw"),
        f"distributed_type (FSDP) takes neither tuning qlora ({tuning}) nor an 8-bit optimizer "
        f"({optimizer}): start with properties/accelerate/ddp_bf16.yaml",
    )
    yield (
        config["precision"] == "fp16" and config["device"].type == "cpu",
        "precision (fp16) needs a GPU: choose bf16 or fp32 on the CPU",
    )


def _schedule_rules(config: Config) -> Iterator[tuple[bool, str]]:
    names = config["schedule"]
    for name in names:
        choices = f"must name phases of {', '.join(SCHEDULES)}{nearest(name, SCHEDULES)}"
        yield name not in SCHEDULES, f"schedule ({name}) {choices}"
        yield names.count(name) > 1, f"schedule ({names}) names {name} more than once"
    yield from _task_rules(config)
    yield (
        "joint" in names and config["cycle_epochs"] < 2,
        "schedule (joint) needs cycles with an epoch of each module: cycle_epochs >= 2",
    )
    yield (
        "final_from_scratch" in names and not config["finetune_epochs"],
        "schedule (final_from_scratch) makes a recommender that must learn: finetune_epochs >= 1",
    )


def _task_rules(config: Config) -> Iterator[tuple[bool, str]]:
    """Rules on the phase of tasks of texts, and on what comes of it."""
    names, tasks = config["schedule"], tasks_of(config)
    yield (
        "tasks" in names and not tasks,
        f"schedule ({names}) has a phase tasks, and there is no task: give tasks, or leave it out",
    )
    yield (
        bool(tasks)
        and not config["mixed_tasks"]
        and "tasks" not in names
        and not config["preference_from"],
        f"tasks ({', '.join(tasks)}): nothing would learn by them, for mixed_tasks is False and "
        f"schedule ({names}) has no phase tasks",
    )
    before = names[: names.index("tasks")] if "tasks" in names else []
    lost = "final_from_scratch" in names or (
        config["finetune_from"] == "best" and any(name != "pretraining" for name in before)
    )
    yield (
        "tasks" in names and lost,
        f"schedule ({names}): a later phase starts from another model than the phase tasks leaves: "
        "let it follow pretraining, without final_from_scratch, or set finetune_from to last",
    )


def advice(config: Config) -> Iterator[str]:
    """What is allowed but hardly ever wanted, a line each."""
    base = config["base_model"]
    rate = config["learning_rate"]
    final_rate = config["finetune_learning_rate"] or rate
    if base and max(rate, final_rate) > FAST:
        yield (
            f"learning_rate ({rate}) and finetune_learning_rate ({final_rate}) suit a decoder from "
            f"scratch: base_model ({base}) wants 1e-4 to 1e-3, as in the overlays"
        )
