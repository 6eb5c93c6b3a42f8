"""The order of training, as data.

Source: ETEGRec (SIGIR 2025), section 3.4. A :class:`Stage` is one epoch: what trains, with which
objectives, and what follows. A :class:`Phase` is a list of stages with their learning rates and
the weights that they start from. The key ``schedule`` names phases of ``SCHEDULES``; the trainer
runs them one after another and knows nothing of their order.

To add a phase: a function of the config that returns it, and a line in ``SCHEDULES``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from recbole_etegrec.losses import OBJECTIVES, objective_weights
from recbole_etegrec.tokenizer import TOKENIZERS
from recbole_etegrec.tokenizer.item_codes import EPOCHS

_POLISH = 0.1  # of the learning rate of alternation, as in the paper
_PREFERENCE_WARMUP = 0.03  # share of its steps
_PRETRAINING_SAVES = 20  # epochs of pretraining, which are short, between two checkpoints

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """One epoch.

    Attributes:
        phase: the name of its phase.
        trains: the module that learns, ``tokenizer`` or ``recommender``, the other being fixed; or
            ``both``.
        weights: of the objectives that count, by name.
        share_codebooks: whether codebooks moved by the recommender go back to the tokenizer after
            it. Where the codes are settled, the tokenizer's own must go on giving them.
        revive: whether codes that no item uses then move to where items are.
        measure_codes: whether the codes that items would get are measured after it.
        rebuild_codes: whether items get new codes after it.
        evaluate: whether the validation metric is measured after it.
        aligns: the modules that objectives which tie both to each other train in it.
        clip: whether gradients are clipped as ``clip_grad_norm`` says.
        save: whether a checkpoint is written after it.
        fixed: parts of the module that do not learn, by the names that their gradients go by.
    """

    phase: str
    trains: str
    weights: Mapping[str, float] = field(default_factory=dict, hash=False)
    share_codebooks: bool = False
    revive: bool = False
    measure_codes: bool = False
    rebuild_codes: bool = False
    evaluate: bool = False
    aligns: tuple[str, ...] = ("tokenizer", "recommender")
    clip: bool = True
    save: bool = True
    fixed: tuple[str, ...] = ()

    @property
    def rate_keys(self) -> tuple[str, ...]:
        """The keys of the learning rates that have moved what learns in its phase."""
        if self.phase == "pretraining":
            return ("tokenizer_learning_rate",)
        if self.phase == "tasks":
            return ("learning_rate",)
        if self.phase == "preference":
            return ("preference_learning_rate",)
        if self.phase.startswith("final") or self.phase == "polish":
            return ("learning_rate", "finetune_learning_rate")
        return ("learning_rate", "alternation_tokenizer_learning_rate")

    @property
    def parts(self) -> tuple["Stage", ...]:
        """What each step consists of, one part for each module that learns."""
        if self.trains != "both":
            return (self,)
        return tuple(
            replace(self, trains=module, weights=self._weights_of(module))
            for module in ("tokenizer", "recommender")
        )

    def _weights_of(self, module: str) -> dict[str, float]:
        return {
            name: weight
            for name, weight in self.weights.items()
            if module in OBJECTIVES[name].trains
            and (module in self.aligns or not OBJECTIVES[name].aligned)
        }

    @property
    def reads_sequences(self) -> bool:
        """Whether histories pass through the recommender."""
        return any(OBJECTIVES[name].reads_sequences for name in self.weights)

    @property
    def reads_groups(self) -> bool:
        """Whether candidates must be drawn for targets."""
        return any(OBJECTIVES[name].reads_groups for name in self.weights)


@dataclass(frozen=True)
class Phase:
    """Stages that belong together.

    Attributes:
        name: its name in ``SCHEDULES``, in logs and in records.
        stages: in their order; none leave the phase out.
        learning_rates: of each module that learns in it.
        course: of the learning rates, after the warm-up: ``constant``, or ``cosine`` down to 0.
        warmup: steps of linear warm-up of each module, or their share of its steps if below 1.
        starts_from: the weights that it goes on with: ``last``, the present ones; ``best``, those
            of the best model so far; ``fresh``, the best model with a recommender made anew, which
            then has to win by scores of its own.
        loader: what an epoch goes over: the training ``sequences``, rows of ``tasks`` alone, or the
            catalogue's ``items``.
        guarded: whether the model that it starts from is kept unless validation finds a better one.
        heads_rate: whether ``heads_learning_rate`` is for it, too.
    """

    name: str
    stages: tuple[Stage, ...]
    learning_rates: Mapping[str, float]
    course: str = "constant"
    warmup: float = 0
    starts_from: str = "last"
    loader: str = "sequences"
    guarded: bool = False
    heads_rate: bool = True


def pretraining(config: Values) -> Phase:
    """The tokenizer alone, on items alone; none for one that k-means has made already.

    Its loss is not clipped. Codes that no item uses are revived after each epoch but the last. It
    ends at a rate of 0, so that its codes are settled.
    """
    epochs = config["tokenizer_epochs"]
    epochs = EPOCHS if epochs is None else epochs  # before the catalogue has settled it
    epochs = epochs if TOKENIZERS[config["tokenizer"]].pretrains else 0
    weights = objective_weights(config, "tokenizer", aligned=False, sequences=False)
    stages = tuple(
        Stage(
            "pretraining",
            "tokenizer",
            weights,
            revive=epoch < epochs,
            measure_codes=True,
            clip=False,
            save=epoch % _PRETRAINING_SAVES == 0,
        )
        for epoch in range(1, epochs + 1)
    )
    rates = {"tokenizer": config["tokenizer_learning_rate"]}
    return Phase("pretraining", stages, rates, "cosine", loader="items")


def tasks(config: Values) -> Phase:
    """The recommender on tasks of texts alone, before it learns what comes next."""
    weights = objective_weights(config, "recommender", aligned=False)
    weights = {name: weight for name, weight in weights.items() if OBJECTIVES[name].part == "tasks"}
    stages = tuple(Stage("tasks", "recommender", weights) for _ in range(config["task_epochs"]))
    rates = {"recommender": config["learning_rate"]}
    return Phase("tasks", stages, rates, warmup=config["warmup_steps"], loader="tasks")


def alternation(config: Values) -> Phase:
    """Cycles of a tokenizer epoch, new codes, then recommender epochs.

    The tokenizer minimises ``L_SQ + mu SIA + lambda PSA``, the recommender
    ``L_REC + mu SIA + lambda PSA``. The adapters of SIA and PSA must have learnt before a tokenizer
    is aligned to them: it is after ``warm_epochs`` and one epoch of the recommender at least.
    Metrics are taken at the end of a cycle, when the recommender has caught up with the new codes.
    """
    return _cycles("alternation", config, joint=False)


def joint(config: Values) -> Phase:
    """Alternation that takes no turns.

    Of a cycle's epochs the first, the tokenizer's, is left out, and both modules learn in each
    step of the next.
    """
    return _cycles("joint", config, joint=True)


def final(config: Values) -> Phase:
    """The recommender alone, on settled codes: ``L_REC``."""
    return _final("final", config, config["finetune_from"])


def polish(config: Values) -> Phase:
    """As the final phase, but with SIA and PSA as in alternation, and at a tenth of its rate."""
    return _final("polish", config, config["finetune_from"], aligned=True, rate=_POLISH)


def final_from_scratch(config: Values) -> Phase:
    """As the final phase, but a new recommender learns the best model's codes."""
    return _final("final_from_scratch", config, "fresh")


def preference(config: Values) -> Phase:
    """The best model learns which of its own candidates are better than others.

    The objective is what the key ``preference`` names. That of the final phase stays, weighted by
    ``preference_likelihood``. The item head and the adapters stay as they are.
    """
    kept = _weights(config, aligned=False)
    weights = {name: weight * config["preference_likelihood"] for name, weight in kept.items()}
    weights = {name: weight for name, weight in weights.items() if weight}
    if config["preference"] in OBJECTIVES:
        weights[config["preference"]] = 1.0
    fixed = ("item_head", "adapters")
    stage = Stage("preference", "recommender", weights, evaluate=True, fixed=fixed)
    return Phase(
        "preference",
        (stage,) * config["preference_epochs"],
        {"recommender": config["preference_learning_rate"]},
        "cosine",
        _PREFERENCE_WARMUP,
        "best",
        guarded=True,
        heads_rate=False,
    )


SCHEDULES: dict[str, Callable[[Values], Phase]] = {
    "pretraining": pretraining,
    "alternation": alternation,
    "joint": joint,
    "final": final,
    "polish": polish,
    "final_from_scratch": final_from_scratch,
    "tasks": tasks,
    "preference": preference,
}


def phases_of(config: Values) -> list[Phase]:
    """The phases of a run, as its key ``schedule`` names them."""
    return [SCHEDULES[name](config) for name in config["schedule"]]


def _cycles(phase: str, config: Values, *, joint: bool) -> Phase:
    """The phase that alternates, or trains both modules in each step."""
    shared = config["codebook_update"] == "shared"
    cycle, epochs, stages = config["cycle_epochs"], config["epochs"], []
    recommender = _weights(config, aligned=True)
    for epoch in range(epochs):
        position = epoch % cycle
        met = any(stage.trains != "tokenizer" for stage in stages)  # the recommender has learnt
        aligned = met and epoch >= config["warm_epochs"]
        tokenizer = objective_weights(config, "tokenizer", aligned=aligned)
        last = position == cycle - 1 or epoch == epochs - 1
        if position == 0 and cycle > 1:
            if not joint:
                stages.append(Stage(phase, "tokenizer", tokenizer, rebuild_codes=True))
        elif position == 1 and joint:
            weights = _in_order({**tokenizer, **recommender})
            aligns = ("tokenizer", "recommender") if aligned else ("recommender",)
            stages.append(
                Stage(phase, "both", weights, rebuild_codes=True, evaluate=last, aligns=aligns)
            )
        else:
            stages.append(
                Stage(phase, "recommender", recommender, share_codebooks=shared, evaluate=last)
            )
    rates = {
        "tokenizer": config["alternation_tokenizer_learning_rate"],
        "recommender": config["learning_rate"],
    }
    return Phase(phase, tuple(stages), rates, warmup=config["warmup_steps"])


def _final(
    phase: str, config: Values, starts_from: str, *, aligned: bool = False, rate: float = 1.0
) -> Phase:
    """A phase of the recommender alone.

    Args:
        rate: what part of alternation's learning rate it has, where no rate of its own is given.
    """
    epochs, every = config["finetune_epochs"], config["eval_step"]
    weights = _weights(config, aligned=aligned)
    stages = tuple(
        Stage(phase, "recommender", weights, evaluate=epoch % every == 0 or epoch == epochs)
        for epoch in range(1, epochs + 1)
    )
    rates = {"recommender": config["finetune_learning_rate"] or rate * config["learning_rate"]}
    warmup = config["warmup_steps"]
    return Phase(phase, stages, rates, "cosine", warmup, starts_from)


def _weights(config: Values, *, aligned: bool) -> dict[str, float]:
    """Of the objectives by which the recommender learns from sequences."""
    weights = objective_weights(config, "recommender", aligned=aligned)
    if config["mixed_tasks"]:
        return weights
    return {name: weight for name, weight in weights.items() if OBJECTIVES[name].part != "tasks"}


def _in_order(weights: Mapping[str, float]) -> dict[str, float]:
    return {name: weights[name] for name in OBJECTIVES if name in weights}
