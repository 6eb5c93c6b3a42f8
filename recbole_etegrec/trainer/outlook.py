"""What is still to come of a training: how many epochs, why so many, and for how long."""

from collections.abc import Iterable, Sequence

from recbole_etegrec.trainer.schedule import Phase, Stage

# How many epochs a phase has; of a user's own it is not known.
_KEYS = {
    "pretraining": "tokenizer_epochs",
    "tasks": "task_epochs",
    "alternation": "epochs",
    "joint": "epochs",
    "final": "finetune_epochs",
    "polish": "finetune_epochs",
    "final_from_scratch": "finetune_epochs",
    "preference": "preference_epochs",
}
_EVALUATION = "evaluation"


class Outlook:
    """Knows the epochs of all phases, and how long those that are over took.

    Attributes:
        epochs: over more than items alone, in all phases.
    """

    def __init__(self, phases: Sequence[Phase]):
        self.phases = phases
        self.epochs = sum(len(phase.stages) for phase in phases if phase.loader != "items")
        self.took: dict[str, list[float]] = {}

    def __str__(self) -> str:
        alone, others = [], []
        for phase in self.phases:
            key = f" ({_KEYS[phase.name]})" if phase.name in _KEYS else ""
            text = f"{len(phase.stages)} of {phase.name}{key}"
            (alone if phase.loader == "items" else others).append(text)
        before = f"epochs of the tokenizer alone: {', '.join(alone)}; then " if alone else ""
        return f"{before}{self.epochs} epochs at most: {', '.join(others) or 'none'}"

    def note(self, what: str, seconds: float) -> None:
        """Keep how long an epoch of a module took, or an evaluation."""
        self.took.setdefault(what, []).append(seconds)

    def left(self, phase: str, index: int) -> str:
        """Say how long it will take at most, as far as epochs of all kinds to come have been seen.

        Args:
            phase: the present one's name.
            index: its epochs that are over.

        Returns:
            Text such as ``, at most 5 min left``; empty where it cannot be said.
        """
        names = [one.name for one in self.phases]
        if phase not in names:
            return ""
        here, *later = self.phases[names.index(phase) :]
        stages = [*here.stages[index:], *(stage for one in later for stage in one.stages)]
        seconds = [self._mean(kind) for stage in stages for kind in _kinds(stage)]
        if not seconds or None in seconds:
            return ""
        return f", at most {duration(sum(seconds))} left"

    def _mean(self, kind: str) -> float | None:
        took = self.took.get(kind)
        return sum(took) / len(took) if took else None


def _kinds(stage: Stage) -> Iterable[str]:
    yield stage.trains
    if stage.evaluate:
        yield _EVALUATION


def duration(seconds: float) -> str:
    """Seconds in words: ``40 s``, ``5 min`` or ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"
